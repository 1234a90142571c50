"""Errors made for the person who reads them: what was wrong, where, and what is allowed."""


def shown(value: object) -> str:
    """A value in an error message, cut where it gets long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class DeepwellError(Exception):
    """Base of every error that a user can cause; its text is shown without a traceback."""


class ConfigError(DeepwellError):
    """An option or a model's config.json has a value that is not allowed."""


class CheckpointError(DeepwellError):
    """A weight or tokenizer file is missing, broken, or of another model."""


class HubError(DeepwellError):
    """A model cannot be had from a hub: it refuses, cannot be reached, or has no such model."""


class RequestError(DeepwellError):
    """A request cannot be served as asked. `param` names the field at fault, when there is one.

    `code` is the word by which programs know the fault, where they look for one.
    """

    code: str | None = None

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ModelUnknown(RequestError):
    """There is no model of the name asked for."""

    code = "model_not_found"


class NotFound(RequestError):
    """There is no such thing, or it is somebody else's, which is told apart by nobody."""

    code = "not_found"


class ContextExceeded(RequestError):
    """Prompt and answer do not fit the context, in DeepSeek's sentence: clients know it, and shorten what they send.

    All counts are in tokens. The prompt has `prompt`, or at least as many; `hint` says what would do here. Its own
    words are those that clients look for besides, who get to see the message but not the code.
    """

    code = "context_length_exceeded"

    def __init__(
        self,
        context: int,
        prompt: int,
        answer: int,
        param: str,
        hint: str = "The prompt is too long: it exceeds the context window.",
        at_least: bool = False,
    ) -> None:
        some = "at least " if at_least else ""
        super().__init__(
            f"This model's maximum context length is {context} tokens. However, you requested {some}{prompt + answer} "
            f"tokens ({some}{prompt} in the messages, {answer} in the completion). Please reduce the length of the "
            f"messages or completion. {hint}",
            param,
        )


class QueueFull(DeepwellError):
    """Admission is bounded and the queue has no place; the client may retry after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineStopped(DeepwellError):
    """The engine is shutting down or has failed, and takes no more requests."""


class Unavailable(DeepwellError):
    """This server cannot do it, and another one, or this one later, may."""


class BadKey(DeepwellError):
    """A request has no API key, or one that does not hold. Its text never repeats the key."""


class Forbidden(DeepwellError):
    """A key that holds, but whose role is not enough."""


class Broke(DeepwellError):
    """An account's balance, or a key's budget, is used up."""


class OverLimit(DeepwellError):
    """A key's own limit is reached. `limit` names it; it makes room in `retry_after` seconds."""

    def __init__(self, message: str, limit: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.limit = limit
        self.retry_after = retry_after


class LedgerDown(DeepwellError):
    """What is used cannot be written down: the database is locked, full or away. Worth another try later."""

    def __init__(self, message: str, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after
