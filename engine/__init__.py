"""The engine's façade: what the server may import. Torch-free.

The data plane is `engine.worker` and `engine.model`; it is loaded on first use.
"""

from engine.async_engine import AsyncEngine, EngineInfo
from engine.config import CacheConfig, EngineConfig, ExitsConfig, ModelConfig, SchedulerConfig
from engine.request import (
    DraftFigures,
    EarlyExitOptions,
    FinishReason,
    GenerationRequest,
    RequestOutput,
    SamplingParams,
    TokenLogprobs,
    TokenTrace,
)
from engine.stats import EngineStats
from engine.tokenizer import Tokenizer

__all__ = [
    "AsyncEngine",
    "CacheConfig",
    "DraftFigures",
    "EarlyExitOptions",
    "EngineConfig",
    "EngineInfo",
    "EngineStats",
    "ExitsConfig",
    "FinishReason",
    "GenerationRequest",
    "ModelConfig",
    "RequestOutput",
    "SamplingParams",
    "SchedulerConfig",
    "TokenLogprobs",
    "TokenTrace",
    "Tokenizer",
]
