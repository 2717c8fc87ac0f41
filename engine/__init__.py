"""The engine's main types in one place: the engine itself, its configuration, requests, outputs.

Importing this package does not import torch: the data plane, `engine.worker` and `engine.model`, is
imported only where a worker is made. The server imports other modules of the control plane, such as
`engine.build` and `engine.errors`, by their own names.
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
