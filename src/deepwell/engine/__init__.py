"""Requests to tokens: scheduler, KV blocks, step plan, sampling, detokenisation."""

from deepwell.engine.core import EngineConfig, EngineCore, EngineStats
from deepwell.engine.engine import AsyncEngine, Stream
from deepwell.engine.runner import Runner
from deepwell.engine.types import Delta, FinishReason, Request, SamplingParams, TokenLogprob, Usage

__all__ = [
    "AsyncEngine",
    "Delta",
    "EngineConfig",
    "EngineCore",
    "EngineStats",
    "FinishReason",
    "Request",
    "Runner",
    "SamplingParams",
    "Stream",
    "TokenLogprob",
    "Usage",
]
