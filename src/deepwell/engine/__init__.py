"""Requests to tokens: scheduler, KV blocks, step plan, sampling, detokenisation."""

from deepwell.engine.core import EngineConfig, EngineCore, EngineStats
from deepwell.engine.engine import AsyncEngine, Stream
from deepwell.engine.runner import Backend
from deepwell.engine.types import Delta, FinishReason, Request, SamplingParams, TokenLogprob, Usage

__all__ = [
    "AsyncEngine",
    "Backend",
    "Delta",
    "EngineConfig",
    "EngineCore",
    "EngineStats",
    "FinishReason",
    "Request",
    "SamplingParams",
    "Stream",
    "TokenLogprob",
    "Usage",
]
