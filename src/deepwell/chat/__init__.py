"""Conversations and texts as token ids: one renderer per prompt format."""

from deepwell.chat.conversation import Message, Role
from deepwell.chat.fim import fills_gaps, render_fim, render_text
from deepwell.chat.formats import FORMATS, detect, render_chat

__all__ = ["FORMATS", "Message", "Role", "detect", "fills_gaps", "render_chat", "render_fim", "render_text"]
