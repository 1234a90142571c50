"""Every option, said once: its type, bounds, default and help text.

Flags, environment variables, keys of deepwell.toml and docs/cli.md all derive from these structs (settings.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from deepwell import bounds

Dtype = Literal["auto", "float32", "bfloat16", "int8", "int4"]
ConvertDtype = Literal["auto", "float32", "float16", "bfloat16", "int8", "int4", "q8_0", "q6_k", "q5_0", "q4_k", "q4_0"]
Speculate = Literal["off", "lookup", "mtp", "auto"]
Thinking = Literal["auto", "on", "off"]
RequestLog = Literal["requests", "errors", "none"]
LogFormat = Literal["text", "json"]
Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Streams = Annotated[int, Meta(ge=1, le=512)]
Measure = Literal["load", "prefill", "decode", "streams", "depth"]
ChatFormat = Literal[
    "auto",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v2.5",
    "deepseek-v3",
    "deepseek-r1",
    "deepseek-r1-0528",
    "deepseek-v3.1",
    "deepseek-v3.2",
    "deepseek-v4",
    "deepseek-v4.1",
    "plain",
    "jinja",
]
"""Those of deepwell.chat, and auto."""
Currency = Annotated[str, Meta(pattern=r"^[A-Z]{3}$", title="a currency of three capital letters such as USD")]
KeyLimit = Annotated[int, Meta(ge=0, le=10**12)]
Database = Annotated[
    str,
    Meta(
        description="Where accounts are kept: a path of SQLite, or postgresql://USER@HOST/NAME; accounts.sqlite in the "
        "user's data folder if left out."
    ),
]
PricesFile = Annotated[
    Path | None, Meta(description="TOML file of what tokens cost (docs/accounts.md); without one they are free.")
]
MaxTokens = Annotated[
    Positive | None,
    Meta(
        description="Longest answer in tokens, where nothing else is asked for; serve has the model's habit if "
        "left out, chat and generate go on to the end of the context."
    ),
]
ForcedFormat = Annotated[
    ChatFormat,
    Meta(description="Prompt format of conversations; auto sees it from the model, jinja runs the model's template."),
]

ARGUMENT = {"argument": True}
"""Marks a positional argument; it can be set nowhere else when it is also ONCE."""
MAIN = {"main": True}
"""Marks the positional argument that is meant where fewer are given than there are."""
ONCE = {"once": True}
"""Marks what belongs to one call only: no environment variable and no TOML key."""


COMMAS = {"commas": True}
"""Marks a list that is written in one go, with commas: 512,2048."""


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What every command that loads a model can be told."""

    model: Annotated[
        Path | None,
        Meta(
            description="Folder of a Hugging Face checkpoint, a GGUF or packed file, a short name of deepwell models, "
            "or ORG/NAME on a hub; the embedded model if left out.",
            extra=ARGUMENT,
        ),
    ] = None
    dtype: Annotated[
        Dtype, Meta(description="How weights are held in memory; auto keeps the checkpoint's own precision.")
    ] = "auto"
    cache_dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Meta(description="How the KV cache is held; auto takes bfloat16 beside quantised weights."),
    ] = "auto"
    importance: Annotated[
        Path | None,
        Meta(
            description="A file of deepwell calibrate or llama-imatrix: quantise to int4 with the inputs that matter "
            "in mind."
        ),
    ] = None
    threads: Annotated[Count, Meta(description="CPU threads to compute with; 0 for all usable cores.")] = 0
    context: Annotated[Count, Meta(description="Longest sequence in tokens; 0 for the model's own limit.")] = 0
    pack_cache: Annotated[
        Annotated[float, Meta(ge=0, le=1e6)],
        Meta(
            description="GB of disk for packed copies, which large models start from in seconds; serve and chat write "
            "them, under the user's cache folder. 0 neither uses nor writes any."
        ),
    ] = 32.0
    speculate: Annotated[
        Speculate,
        Meta(
            description="Guess tokens ahead from the text itself or the model's prediction module; auto does what "
            "measures fastest. No answer changes."
        ),
    ] = "auto"
    draft_tokens: Annotated[
        Annotated[int, Meta(ge=1, le=16)], Meta(description="Most tokens guessed ahead per answer and step.")
    ] = 3


class ServeOptions(EngineOptions, frozen=True, kw_only=True):
    """Serve a model over HTTP: the DeepSeek and OpenAI API, and a chat page.

    Examples:
      deepwell serve                              the embedded model on 127.0.0.1:8000
      deepwell serve ./my-model --dtype int8      a checkpoint, held in 8 bits
      deepwell serve SmolLM2-135M-Instruct        a model that deepwell models lists, fetched once
      deepwell serve ORG/NAME                     any other model of a hub
      deepwell serve ./r1 --chat-format deepseek-r1     a checkpoint that does not show its prompt format
      deepwell serve ./v3 --name deepseek-chat --name gpt-4o     under two names
      deepwell keys add ada                       an API key; from the first one on, nobody is answered without
      deepwell serve --host 0.0.0.0 --port 80     reachable from other machines, for those who have a key
      DEEPWELL_PORT=9000 deepwell serve           the same options from the environment
    """

    host: Annotated[
        str,
        Meta(
            description="Address to listen on; 0.0.0.0 for every network, for which deepwell keys or --open is needed."
        ),
    ] = "127.0.0.1"
    port: Annotated[Port, Meta(description="Port to listen on; 0 takes a free one.")] = 8000
    name: Annotated[
        tuple[Annotated[str, Meta(min_length=1)], ...],
        Meta(
            description="Model name that clients may ask for; may be repeated. If left out, the checkpoint's own, and "
            "those of DeepSeek's API for such models (deepseek-chat, deepseek-reasoner)."
        ),
    ] = ()
    chat_format: ForcedFormat = "auto"
    database: Database = ""
    prices: PricesFile = None
    open: Annotated[
        bool, Meta(description="Answer other machines though no API key exists, so that anybody there may ask.")
    ] = False
    isolate: Annotated[
        bool,
        Meta(
            description="Let no account find another's prompts in the prefix cache, nor one user_id another's: how "
            "long an answer takes then tells nothing about them."
        ),
    ] = False
    max_running: Annotated[Positive, Meta(description="Requests answered together.")] = 64
    max_waiting: Annotated[Count, Meta(description="Requests that may wait; the next one is refused at once.")] = 64
    queue_seconds: Annotated[
        Annotated[float, Meta(gt=0, le=86400)],
        Meta(description="How long a request may wait for its turn; then it ends with an error."),
    ] = 600.0
    token_budget: Annotated[
        Positive, Meta(description="Tokens computed per step; less answers others sooner, more reads prompts faster.")
    ] = 512
    step_ms: Annotated[
        Annotated[float, Meta(ge=1, le=60_000)],
        Meta(
            description="Aim of a step's length in milliseconds while others wait; long prompts are read in pieces so "
            "that no stream waits longer."
        ),
    ] = 250.0
    max_tokens: MaxTokens = None
    strict: Annotated[
        bool,
        Meta(
            description="Answer exactly as DeepSeek's API does: refuse what it refuses (max_tokens without room, n, "
            "the developer role), ignore what it ignores, and leave out other endpoints; docs/deepseek-api.md has "
            "the rules."
        ),
    ] = False
    data_dir: Annotated[
        str,
        Meta(
            description="Folder of uploaded files and batches; by default deepwell/ in the user's data folder. One "
            "server works in it at a time."
        ),
    ] = ""
    max_body_mb: Annotated[
        Annotated[float, Meta(gt=0, le=1024)],
        Meta(description="Longest request body that is read, in MiB; a longer one gets a 413."),
    ] = 8.0
    keep_alive_seconds: Annotated[
        Annotated[float, Meta(gt=0, le=3600)],
        Meta(
            description="Silence after which a stream gets a comment line, and an answer in one piece an empty line "
            "before it, so that nobody gives up while it waits; keep it below the limit of every proxy."
        ),
    ] = 5.0
    drain_seconds: Annotated[
        Annotated[float, Meta(ge=0, le=86400)],
        Meta(
            description="How long running answers may go on after Ctrl-C or SIGTERM; then they end as they are. A "
            "second signal ends the server at once."
        ),
    ] = 5.0
    allow_host: Annotated[
        tuple[Annotated[str, Meta(min_length=1)], ...],
        Meta(
            description="One more name that the server answers to, besides this machine's own and its addresses; may "
            "be repeated. * for every name."
        ),
    ] = ()
    allow_origin: Annotated[
        tuple[
            Annotated[
                str,
                Meta(
                    pattern=r"^(\*|[a-z][a-z0-9+.-]*://[^/\s]+|null)$",
                    title="a site such as https://chat.example with no path, * or null",
                ),
            ],
            ...,
        ],
        Meta(
            description="A site whose pages may ask this server, such as https://chat.example; may be repeated. * for "
            "every site."
        ),
    ] = ()
    base_path: Annotated[
        Annotated[
            str,
            Meta(
                pattern=r"^/?([A-Za-z0-9._~-]+(/[A-Za-z0-9._~-]+)*/?)?$",
                title="the path of an address, such as /deepwell, of letters, digits and . _ ~ -",
            ),
        ],
        Meta(description="Path under which everything is, such as /deepwell, behind a proxy that does not remove it."),
    ] = ""
    log: Annotated[
        RequestLog,
        Meta(
            description="Which requests get a line on standard error: status, seconds, tokens and model, and no text."
        ),
    ] = "requests"
    log_format: Annotated[
        LogFormat, Meta(description="How: lines of text, or a JSON object a line, with the ids of answers too.")
    ] = "text"
    otlp: Annotated[
        str,
        Meta(
            description="Address of an OpenTelemetry collector, such as http://localhost:4318, that gets a span of "
            "each request; OTEL_EXPORTER_OTLP_ENDPOINT does the same. Needs deepwell[tracing]."
        ),
    ] = ""


class SamplingOptions(EngineOptions, frozen=True, kw_only=True):
    """How a command-line answer is sampled. None is as the model's makers advise, and neutral where they do not."""

    max_tokens: MaxTokens = None
    temperature: Annotated[
        Annotated[float, bounds.TEMPERATURE] | None,
        Meta(
            description="Randomness; 0 always takes the most likely token. This and the next four are as the model's "
            "makers advise if left out; where they advise nothing, the most likely token is taken."
        ),
    ] = None
    top_p: Annotated[
        Annotated[float, bounds.TOP_P] | None,
        Meta(description="Sample from the likeliest tokens that hold this share; 1 for all."),
    ] = None
    top_k: Annotated[
        Annotated[int, bounds.TOP_K] | None,
        Meta(description="Sample from this many likeliest tokens; 0 for all."),
    ] = None
    min_p: Annotated[
        Annotated[float, bounds.MIN_P] | None,
        Meta(description="Drop tokens below this share of the likeliest one; 0 for none."),
    ] = None
    repetition_penalty: Annotated[
        Annotated[float, bounds.REPETITION_PENALTY] | None,
        Meta(description="Above 1, tokens already seen become less likely."),
    ] = None
    seed: Annotated[Annotated[int, bounds.SEED] | None, Meta(description="Makes sampling repeatable.")] = None
    stop: Annotated[
        tuple[Annotated[str, bounds.STOP], ...], Meta(description="End the answer before this text; may be repeated.")
    ] = ()


class ChatOptions(SamplingOptions, frozen=True, kw_only=True):
    """Chat with a model in the terminal.

    Examples:
      deepwell chat ./my-model --system "Be brief."
      deepwell chat ORG/NAME --thinking on        a model of a hub; its thoughts are shown dim
      deepwell chat model.gguf "Why is the sky blue?"      one question, then done
      cat letter.txt | deepwell chat model.gguf   all that comes through a pipe is one question
      deepwell chat model.gguf "Summarise this:" < letter.txt     the question, a blank line and the text are one

    Ctrl-C stops an answer, pressed twice it leaves, as Ctrl-D does. A text that is pasted is one message. /help
    lists what else can be typed.
    """

    question: Annotated[
        str | None,
        Meta(
            description="One question to answer, and no conversation; a pipe or file on standard input is "
            "added to it, and is all of it for -. In a loop of the shell, < /dev/null keeps the loop's own input.",
            extra=ARGUMENT | ONCE,
        ),
    ] = None
    system: Annotated[str, Meta(description="Instructions that open the conversation.")] = ""
    chat_format: ForcedFormat = "auto"
    thinking: Annotated[
        Thinking, Meta(description="Whether the model thinks before it answers; auto leaves it to the model's habit.")
    ] = "auto"


class GenerateOptions(SamplingOptions, frozen=True, kw_only=True):
    """Continue a text and print the continuation.

    Examples:
      deepwell generate "def fibonacci(n):"       the embedded model
      deepwell generate ./my-model "Once upon"    a checkpoint
      cat main.py | deepwell generate ./my-model  the prompt through a pipe
      deepwell generate "def area(r):" --fim-suffix "    return a"     fill in the middle
      deepwell generate "x = " --json | jq .usage
    """

    prompt: Annotated[
        str,
        Meta(
            description="Text to continue; - or nothing reads standard input, which is left alone beside a text. "
            "A model alone is taken as MODEL.",
            extra=ARGUMENT | ONCE | MAIN,
        ),
    ] = "-"
    fim_suffix: Annotated[
        str | None, Meta(description="Text that follows: fill the gap between prompt and suffix.", extra=ONCE)
    ] = None
    json: Annotated[bool, Meta(description="Print one JSON object: text, finish reason, usage.", extra=ONCE)] = False


class PullOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Fetch a model from a hub and print where it lies.

    Examples:
      deepwell pull SmolLM2-135M-Instruct         a short name: deepwell models lists them
      deepwell pull ORG/NAME                      its safetensors, or its only GGUF file
      deepwell pull ORG/NAME:Q4_K_M               the GGUF file of this quantisation
      deepwell pull ORG/NAME@v1.0                 a branch, tag or commit
      HF_ENDPOINT=https://hub.example deepwell pull ORG/NAME

    Every command that loads a MODEL takes such a name and fetches it when needed; pull also looks for newer files.
    What was interrupted goes on where it was. Files lie in the cache of huggingface_hub; docs/models-from-a-hub.md
    tells more.
    """

    model: Annotated[
        str, Meta(description="A short name, ORG/NAME, ORG/NAME@REVISION or ORG/NAME:FILE.", extra=ARGUMENT | ONCE)
    ]


class ListOptions(msgspec.Struct, frozen=True, kw_only=True):
    """List the models on this disk: what hubs gave, packed copies, and the embedded one.

    Examples:
      deepwell list                               names, kinds, sizes, when they were last used
      deepwell list --json | jq '.[] | select(.partial) | .name'

    The names are those that every command takes for MODEL. What is partial is a download that was not finished: the
    same name goes on with it. Packed copies are those that serve and chat write for a quick start; they are found by
    themselves, and their names are for deepwell rm --packed. Nobody is asked, and nothing is changed.
    """

    json: Annotated[bool, Meta(description="Print a JSON list.", extra=ONCE)] = False
    names: Annotated[
        bool, Meta(description="Print the names that MODEL may be, known ones too, as completion does.", extra=ONCE)
    ] = False


class RmOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Remove a model that came from a hub from this disk, or packed copies.

    Examples:
      deepwell rm SmolLM2-135M-Instruct           a short name, as deepwell models lists it
      deepwell rm ORG/NAME                        all of a repository, every revision and unfinished downloads
      deepwell rm ORG/NAME:Q4_K_M                 one of its GGUF files
      deepwell rm ORG/NAME@v1.0                   one revision; files that others share stay
      deepwell rm --packed                        all packed copies
      deepwell rm --packed NAME                   one, by its name in deepwell list

    On a terminal it asks first. Only the caches of the hub and of packed copies are ever touched. A server that uses
    the files goes on: what it has mapped stays valid until it ends, and the disk space comes free then.
    """

    model: Annotated[
        str | None,
        Meta(description="A name of deepwell list; all copies if left out with --packed.", extra=ARGUMENT | ONCE),
    ] = None
    packed: Annotated[bool, Meta(description="Remove packed copies instead of a hub's model.", extra=ONCE)] = False
    yes: Annotated[bool, Meta(description="Do not ask.", extra=ONCE)] = False


class BenchOptions(EngineOptions, frozen=True, kw_only=True):
    """Measure prefill, decode, load and memory, beside what the machine allows and beside other engines.

    Examples:
      deepwell bench                              the embedded model
      deepwell bench ./my-model --dtype int4 --repeats 5
      deepwell bench ./my-model --measure prefill,depth --prompt-tokens 512,2048 --depths 4096
      deepwell bench model.gguf --compare llama.cpp=~/llama.cpp/build/bin --chart speed.svg
      deepwell bench --json > bench.json

    --compare takes turns: in every round each engine runs in a process of its own, one after the other, and what the
    machine allows is measured before and after each. PATH is the folder of a build of llama.cpp or ik_llama.cpp
    (with llama-bench and llama-batched-bench), or its llama-bench.
    """

    measure: Annotated[
        tuple[Measure, ...],
        Meta(description="What to measure; depth is decoding after long prompts.", extra=COMMAS),
    ] = ("load", "prefill", "decode", "streams")
    prompt_tokens: Annotated[
        tuple[Positive, ...], Meta(description="Lengths of the prompts that are read for prefill.", extra=COMMAS)
    ] = (512,)
    decode_tokens: Annotated[Positive, Meta(description="Tokens generated wherever decoding is measured.")] = 64
    streams: Annotated[
        tuple[Streams, ...], Meta(description="How many different prompts are answered together.", extra=COMMAS)
    ] = (16,)
    depths: Annotated[
        tuple[Positive, ...], Meta(description="Tokens before the answers that depth measures.", extra=COMMAS)
    ] = (4096,)
    repeats: Annotated[Positive, Meta(description="Runs of each measurement; the median is shown.")] = 3
    no_limits: Annotated[
        bool, Meta(description="Do not measure what the machine allows beside each run (a moment, and 512 MiB).")
    ] = False
    compare: Annotated[
        tuple[str, ...], Meta(description="Another engine as NAME=PATH; may be repeated.", extra=ONCE)
    ] = ()
    chart: Annotated[
        Path | None, Meta(description="Write the comparison as a picture into this SVG file.", extra=ONCE)
    ] = None
    json: Annotated[bool, Meta(description="Print one JSON object.", extra=ONCE)] = False


class PerplexityOptions(EngineOptions, frozen=True, kw_only=True):
    """Measure how well a model writes down a text, and what its quantisation costs.

    Examples:
      deepwell perplexity model.gguf prose.txt
      deepwell perplexity ./my-model prose.txt --dtype int4 --reference ./my-model      beside float32
      deepwell perplexity model-q4.gguf prose.txt --reference model-f16.gguf --windows 40
      deepwell perplexity model.gguf prose.txt --json | jq .perplexity

    The text is cut into windows as llama.cpp's llama-perplexity cuts it, and the second half of each is scored, so that
    figures compare. --reference measures another copy of the model over the same windows: the divergence from it (KL,
    in nats per token) and how often both prefer the same token show what quantising costs more clearly than perplexity.
    """

    text: Annotated[str, Meta(description="A file of plain text; - reads standard input.", extra=ARGUMENT | ONCE)]
    window: Annotated[Annotated[int, Meta(ge=8)], Meta(description="Tokens of a window.", extra=ONCE)] = 512
    windows: Annotated[Count, Meta(description="Windows to measure; 0 measures all of the text.", extra=ONCE)] = 0
    reference: Annotated[
        Path | None, Meta(description="The same model, more exact: a folder, file or ORG/NAME.", extra=ONCE)
    ] = None
    reference_dtype: Annotated[
        Dtype,
        Meta(description="How the reference's weights are held; float32 computes what they say.", extra=ONCE),
    ] = "float32"
    json: Annotated[bool, Meta(description="Print one JSON object.", extra=ONCE)] = False


class ModelsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """List models by their short names, or tell what one costs: memory in each precision, cache, FLOPs, what fits here.

    Every name that it lists can be served and pulled: deepwell serve DeepSeek-V2-Lite fetches it from a hub first.

    Examples:
      deepwell models                             all of them, and how each would fit into this machine's memory
      deepwell models DeepSeek-V2-Lite            one in detail
      deepwell models deepseek-ai/DeepSeek-R1     the name of its repository does as well
      deepwell models ./my-model                  a folder (its config.json alone), a GGUF or a packed file
      deepwell models ORG/NAME                    a model that was fetched from a hub before
      deepwell models --json | jq '.[] | select(.precisions[].fits) | .name' | uniq

    Nothing is downloaded and no weights are read.
    """

    model: Annotated[
        str | None,
        Meta(
            description="A released model's name, a path, or ORG/NAME; all released models if left out.",
            extra=ARGUMENT | ONCE,
        ),
    ] = None
    json: Annotated[bool, Meta(description="Print JSON: an object, or a list of them.", extra=ONCE)] = False


class ConvertOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Write a model as another kind of file: packed, GGUF or safetensors, in another precision if asked.

    Examples:
      deepwell convert ./my-model my-model.gguf                       for llama.cpp and its relatives
      deepwell convert ./my-model my-model.gguf --dtype q4_k
      deepwell convert ./my-model my-model.gguf --dtype q4_k --importance my.importance.safetensors
      deepwell convert my-model.gguf ./my-model                       a Hugging Face folder, with its tokenizer
      deepwell convert ./DeepSeek-V3 ./DeepSeek-V3-bf16               block FP8 to bfloat16
      deepwell convert ./my-model my-model.deepwell --dtype int8      packed: mapped at load instead of read

    Weights pass through memory in pieces, whatever the model's size. The source is left as it is; OUT is there only
    when it is whole.
    """

    source: Annotated[Path, Meta(description="The model: whatever serve can load.", extra=ARGUMENT | ONCE)]
    out: Annotated[
        Path,
        Meta(description="What to write: NAME.deepwell, NAME.gguf, or a folder of safetensors.", extra=ARGUMENT | ONCE),
    ]
    to: Annotated[
        Literal["auto", "packed", "gguf", "safetensors"],
        Meta(description="The kind of file, where OUT's suffix does not say it.", extra=ONCE),
    ] = "auto"
    dtype: Annotated[
        ConvertDtype,
        Meta(
            description="How weights are held: int8 and int4 in packed files, float16 and q8_0 to q4_0 in GGUF; "
            "auto keeps the source's own precision, and makes bfloat16 of FP8."
        ),
    ] = "auto"
    shard_gb: Annotated[
        Annotated[float, Meta(gt=0, le=1e6)],
        Meta(description="Size of a safetensors shard at most, in GB.", extra=ONCE),
    ] = 5.0
    importance: Annotated[
        Path | None,
        Meta(
            description="A file of deepwell calibrate or llama-imatrix: quantise to int4, or to q6_k, q5_0, q4_k or "
            "q4_0 in GGUF, with the inputs that matter in mind."
        ),
    ] = None
    force: Annotated[bool, Meta(description="Write OUT anew if it exists.", extra=ONCE)] = False


class CalibrateOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Measure which inputs of a model's matrices matter, over a text, for a better quantisation to few bits.

    Examples:
      deepwell calibrate --text prose.txt --out importance.safetensors      the embedded model
      deepwell calibrate ./my-model --text prose.txt --out my.importance.safetensors --tokens 16384

    Takes torch, of the extra `train` (an error says how to get it), and memory for the largest layer in float32.
    """

    model: Annotated[
        Path | None,
        Meta(
            description="Folder of a Hugging Face checkpoint, a GGUF or packed file, or ORG/NAME on a hub; the "
            "embedded model if left out.",
            extra=ARGUMENT | ONCE,
        ),
    ] = None
    text: Annotated[Path, Meta(description="Text like what the model will read.", extra=ONCE)]
    out: Annotated[Path, Meta(description="File to write: mean squares of every input, safetensors.", extra=ONCE)]
    tokens: Annotated[
        Annotated[int, Meta(ge=32, le=1 << 20)], Meta(description="Tokens of the text to use.", extra=ONCE)
    ] = 4096


class AccountsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What every command that works on accounts can be told."""

    database: Database = ""


class KeysOptions(AccountsOptions, frozen=True, kw_only=True):
    """Make, list, limit and revoke API keys, and put money on accounts.

    Examples:
      deepwell keys add ada                       a key of the account ada, which is made if need be
      deepwell keys add ada --models deepseek-chat --expires 30d --budget 20
      deepwell keys add root --role admin         for the admin API and page
      KEY=$(deepwell keys add ada)                the key alone is printed, and never again
      deepwell keys list --json | jq .
      deepwell keys limit 3 --requests-per-minute 60 --concurrent 4
      deepwell keys revoke 3                      by its id, its beginning, or an account that has one key
      deepwell keys grant ada 10 --expires 30d    granted money is spent first
      deepwell keys top-up ada 50 --currency CNY
      deepwell keys adjust ada -3.50 --note "refund of 3 May"

    From the first key on, a server on this database answers nobody without one. A server notices what changes here
    within seconds. docs/accounts.md tells more.
    """

    action: Annotated[
        Literal["add", "list", "limit", "revoke", "grant", "top-up", "adjust"],
        Meta(description="What to do: add, list, limit, revoke, grant, top-up or adjust.", extra=ARGUMENT | ONCE),
    ]
    name: Annotated[
        str | None,
        Meta(description="The account; to limit and revoke: the key's id or beginning.", extra=ARGUMENT | ONCE),
    ] = None
    amount: Annotated[
        str | None, Meta(description="Money to grant, top up or adjust by: 12.50.", extra=ARGUMENT | ONCE)
    ] = None
    role: Annotated[
        Literal["user", "admin"], Meta(description="Of a new key: admin may use the admin API and page.", extra=ONCE)
    ] = "user"
    models: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...],
        Meta(description="The only models a key may use; * for all.", extra=COMMAS | ONCE),
    ] = ()
    expires: Annotated[
        str | None,
        Meta(description="End of a key or grant: 30d, 12h, 2026-12-31 (UTC), or never.", extra=ONCE),
    ] = None
    requests_per_minute: Annotated[
        KeyLimit | None, Meta(description="Requests of a key in any 60 seconds; 0 for no limit.", extra=ONCE)
    ] = None
    tokens_per_minute: Annotated[
        KeyLimit | None, Meta(description="Tokens of a key in any 60 seconds; 0 for no limit.", extra=ONCE)
    ] = None
    concurrent: Annotated[
        KeyLimit | None, Meta(description="Requests of a key at one time; 0 for no limit.", extra=ONCE)
    ] = None
    budget: Annotated[
        str | None, Meta(description="Money a key may spend, such as 20 or 0.50; 0 for no limit.", extra=ONCE)
    ] = None
    budget_period: Annotated[
        Literal["month", "total"] | None,
        Meta(description="Whether the budget is for a calendar month (UTC) or in all; month if left out.", extra=ONCE),
    ] = None
    currency: Annotated[
        Currency | None,
        Meta(description="Of the money and the budget; that of the prices if left out, or USD.", extra=ONCE),
    ] = None
    note: Annotated[
        Annotated[str, Meta(max_length=500)],
        Meta(description="Why money is granted, topped up or adjusted.", extra=ONCE),
    ] = ""
    prices: PricesFile = None
    json: Annotated[bool, Meta(description="Print the list as JSON.", extra=ONCE)] = False


class UsageOptions(AccountsOptions, frozen=True, kw_only=True):
    """Print or export what was used: tokens, requests, latencies and money.

    Examples:
      deepwell usage                              by day, account and model
      deepwell usage --by hour --since 7d
      deepwell usage --by account --since 2026-11-01 --until 2026-12-01 --csv > november.csv
      deepwell usage --rows --json | jq '.[] | select(.reason == "interrupted")'
      deepwell usage --rows --parquet usage.parquet
      deepwell usage --check                      that all rows and movements add up to the balances

    Exports have money in micro-units (millionths of the currency) and times in microseconds since 1970, UTC: exact
    integers. docs/accounts.md describes every column.
    """

    by: Annotated[
        tuple[Literal["hour", "day", "account", "key", "model", "kind"], ...],
        Meta(description="What to add up by: hour, day, account, key, model, kind.", extra=COMMAS | ONCE),
    ] = ("day", "account", "model")
    rows: Annotated[bool, Meta(description="Each request instead of sums.", extra=ONCE)] = False
    since: Annotated[
        str | None, Meta(description="Requests that started from then on: 30d, 12h, or a day (UTC).", extra=ONCE)
    ] = None
    until: Annotated[str | None, Meta(description="Requests that started before.", extra=ONCE)] = None
    account: Annotated[str | None, Meta(description="The requests of one account.", extra=ONCE)] = None
    json: Annotated[bool, Meta(description="Print a JSON list.", extra=ONCE)] = False
    csv: Annotated[bool, Meta(description="Print comma-separated values with a line of names.", extra=ONCE)] = False
    parquet: Annotated[Path | None, Meta(description="Write a Parquet file; takes the extra parquet.", extra=ONCE)] = (
        None
    )
    check: Annotated[
        bool, Meta(description="Check that everything adds up; exit code 1 if it does not.", extra=ONCE)
    ] = False


class DoctorOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Say what Deepwell finds on this machine, what is missing, and what would be faster.

    Examples:
      deepwell doctor
      deepwell doctor --limits                    measure memory and arithmetic too, in a few seconds
      deepwell doctor --json | jq .native.isa
    """

    limits: Annotated[
        bool, Meta(description="Measure how fast memory is read and numbers are multiplied.", extra=ONCE)
    ] = False
    json: Annotated[bool, Meta(description="Print one JSON object.", extra=ONCE)] = False


class CompletionOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Print a script that completes commands and options on Tab.

    Examples:
      source <(deepwell completion bash)          for this shell; add the line to ~/.bashrc to keep it
      source <(deepwell completion zsh)
      deepwell completion fish | source
    """

    shell: Annotated[Literal["bash", "zsh", "fish"], Meta(description="The shell to write for.", extra=ARGUMENT | ONCE)]
