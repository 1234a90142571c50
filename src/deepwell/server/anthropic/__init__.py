"""Anthropic's Messages API over the same conversations: bodies, their translation, and answers in its words."""

from deepwell.server.anthropic.errors import WordErrors
from deepwell.server.anthropic.messages import count_tokens, messages
from deepwell.server.anthropic.models import asks_anthropic, model, models

__all__ = ["WordErrors", "asks_anthropic", "count_tokens", "messages", "model", "models"]
