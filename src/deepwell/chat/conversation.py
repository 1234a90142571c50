"""What a conversation is, whatever protocol it came by."""

from __future__ import annotations

from typing import Literal

import msgspec

Role = Literal["system", "user", "assistant"]


class Message(msgspec.Struct, frozen=True):
    """One turn. `prefix` marks a last assistant turn that the model continues instead of answering."""

    role: Role
    content: str
    prefix: bool = False
