"""Conversations and texts as token ids: one renderer per prompt format."""

from deepwell.chat.conversation import Message
from deepwell.chat.fim import render_fim, render_text
from deepwell.chat.formats import FORMATS, detect, render_chat

__all__ = ["FORMATS", "Message", "detect", "render_chat", "render_fim", "render_text"]
