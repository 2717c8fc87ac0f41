"""The engine's configuration: frozen, built by the server's settings or by hand in tests.

"auto" values stay None here; the worker resolves them from the model and the machine and reports
the outcome in `WorkerInfo`. No environment, no files, no torch.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which weights, and how they are computed."""

    directory: Path  # in the Hugging Face layout (engine.checkpoint makes one of anything else)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    # CPU weights. auto: blocks the checkpoint has, as they are; none: no blocks; int8, q4: all.
    quantization: Literal["auto", "none", "int8", "q4"] = "auto"
    max_model_len: int | None = None  # None: the model's own
    num_threads: int | None = None  # CPU threads of the worker; None: all cores it may use
    pin_threads: Literal["auto", "always", "never"] = "auto"  # auto: if cores are left over
    backend: Literal["auto", "native", "torch"] = "auto"  # kernels
    exact: bool = True  # GPU: rows keep their bits in any batch, or the model is not served
    enforce_eager: bool = False  # GPU: no graphs


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """The paged KV cache."""

    block_size: int = 16  # tokens per block
    kv_cache_memory_bytes: int | None = None  # None: a share of the free memory
    gpu_memory_utilization: float | None = None  # of all memory, weights included; None: 0.9
    num_blocks: int | None = None  # as many as the first worker had, if they can be had


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Who runs together, and on which blocks."""

    max_num_seqs: int = 64  # sequences running at once
    max_num_batched_tokens: int = 512  # tokens computed per step, decoding rows first
    max_num_queued_requests: int = 1024  # may wait besides those that run; more is overload
    max_num_queued_tokens: int | None = None  # prompt tokens of those that wait; None: no limit
    policy: Literal["fcfs", "priority"] = "fcfs"  # who runs first: the oldest, or by priority
    prefix_caching: bool = True  # share KV blocks among requests that begin alike


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitsConfig:
    """Early exits."""

    enabled: bool = True
    heads: Path | None = None  # holds heads.safetensors and heads.json; None: no exits
    lookup: bool = True  # drafts from text that repeats its prompt or itself
    alternates: bool = True  # second candidates for places of drafts, where they pay
    threshold: float | None = None  # fixed confidence threshold; None: the cost-aware policy
    target_itl_s: float | None = None  # drafts never make a step longer; tokens leave evenly
    max_draft_tokens: int = 15  # pending drafts per row and step; the policy mostly wants fewer
    learn: bool = False  # heads learn from verified traffic
    learn_share: float = 0.1  # of the worker's time, at most
    learn_directory: Path | None = None  # of learned heads; None: in the cache, by model


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisionConfig:
    """When a worker that says nothing is given up and replaced."""

    step_timeout_s: float = 300.0  # for a step, and between signs of progress while loading
    heartbeat_timeout_s: float = 10.0  # without a sign of life, whatever it is doing


@dataclass(frozen=True, slots=True, kw_only=True)
class StructureConfig:
    """Schemas, patterns and grammars that outputs have to follow."""

    timeout_s: float = 10.0  # that one may take to compile


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """All of it."""

    model: ModelConfig
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    exits: ExitsConfig = field(default_factory=ExitsConfig)
    supervision: SupervisionConfig = field(default_factory=SupervisionConfig)
    structure: StructureConfig = field(default_factory=StructureConfig)
    worker: Literal["process", "inline"] = "process"
