"""Conversations and texts as token ids, and token ids as answers: one renderer and one reader per prompt format."""

from deepwell.chat.conversation import Call, Conversation, Message, Result, Role, Structure, Text, Thought, Tool
from deepwell.chat.fim import fills_gaps, opening, render_fim, render_text
from deepwell.chat.formats import FORMATS, detect, find_format, trained_to_chat
from deepwell.chat.render import end_ids, render_chat

__all__ = [
    "FORMATS",
    "Call",
    "Conversation",
    "Message",
    "Result",
    "Role",
    "Structure",
    "Text",
    "Thought",
    "Tool",
    "detect",
    "end_ids",
    "fills_gaps",
    "find_format",
    "opening",
    "render_chat",
    "render_fim",
    "render_text",
    "trained_to_chat",
]
