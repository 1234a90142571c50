/** Starting points for an empty page. The embedded model completes Python, so these play to it. */

export const CHAT_EXAMPLES = [
  { title: "Write a function", text: "Write a Python function that returns the n-th Fibonacci number." },
  { title: "Explain an idea", text: "Explain Python's list comprehensions with two short examples." },
  { title: "Find a mistake", text: "What is wrong with `def add(item, items=[]): items.append(item); return items`?" },
] as const;

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
