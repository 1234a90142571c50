"""A server whose model thinks where it may, calls `weather` where that is on offer, and greets where it is not."""

from serving import ASSISTANT, T, make_service

from deepwell.chat import FORMATS
from deepwell.server import Site, listen, serve
from fakes import FakeRunner
from toy_format import END_RESULT, END_THINK, EOS, THINK, TOY, called, ids

CALL = ids("I look. ", *called("weather", '{"city": "Köln"}'), EOS)
FINAL = ids("It is cold in Köln.", EOS)
GREETING = ids("Hello, wörld 🐳.", EOS)
THOUGHT = ids("Let me think.", END_THINK)


def next_token(context: tuple[int, ...]) -> int | None:
    """The next token of the answer that suits the prompt."""
    begin = len(context) - context[::-1].index(ASSISTANT) + 1 if ASSISTANT in context else len(context)
    if begin > len(context):
        return None
    prompt, said = context[:begin], context[begin:]
    if T.special(END_RESULT.spelling) in prompt:
        answer = FINAL
    else:
        answer = CALL if "weather: {" in T.decode(prompt) else GREETING
    if prompt[-1:] == (T.special(THINK.spelling),):
        answer = [*THOUGHT, *answer]
    return answer[len(said)] if list(said) == answer[: len(said)] and len(said) < len(answer) else None


if __name__ == "__main__":
    FORMATS[TOY.name] = TOY
    service = make_service(FakeRunner(context=4096, next_token=next_token), format=TOY.name)
    serve(service, listen(port=0), lambda address: print(address, flush=True), Site(log="none"))
