/** Starting points for an empty page. */

export const CHAT_EXAMPLES = [
  { title: "Explain an idea", text: "Why is the sky blue, and why are sunsets red? Explain it in a few sentences." },
  { title: "Write a function", text: "Write a Python function that returns the n-th Fibonacci number." },
  { title: "Put it better", text: "Rewrite this in plain English: “Pursuant to our discussion, please find attached herewith the document in question.”" },
  { title: "Find a mistake", text: "What is wrong with `def add(item, items=[]): items.append(item); return items`?" },
] as const;

/** Code, which open base models and the embedded one continue best. Those with a suffix are for models that fill gaps. */
export const COMPLETE_EXAMPLES = [
  {
    title: "Continue a class",
    prefix: 'class Stack:\n    """A last-in, first-out stack."""\n\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n',
    suffix: "",
  },
  {
    title: "Fill a loop",
    prefix: "def count_words(path):\n    counts = {}\n    with open(path, encoding='utf-8') as file:\n",
    suffix: "    return counts\n",
  },
  {
    title: "Write a test",
    prefix: "import unittest\n\n\nclass TestSorted(unittest.TestCase):\n    def test_empty(self):\n        self.assertEqual(sorted([]), [])\n\n    def test_reverse(self):\n",
    suffix: "",
  },
  {
    title: "Fill a docstring",
    prefix: 'def clamp(value, low, high):\n    """',
    suffix: '"""\n    return max(low, min(value, high))\n',
  },
] as const;
