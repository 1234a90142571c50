"""OpenAI's Responses API over the same conversations: bodies, their translation, and answers as items and events."""

from deepwell.server.responses.responses import input_tokens, not_stored, responses

__all__ = ["input_tokens", "not_stored", "responses"]
