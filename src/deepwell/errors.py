"""Errors made for the person who reads them: what was wrong, where, and what is allowed."""


def shown(value: str) -> str:
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
    """A request cannot be served as asked. `param` names the field at fault, when there is one."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class QueueFull(DeepwellError):
    """Admission is bounded and the queue has no place; the client may retry after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineStopped(DeepwellError):
    """The engine is shutting down or has failed, and takes no more requests."""
