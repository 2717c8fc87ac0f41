"""The engine's configuration: frozen data, built from the server's settings or by hand.

What is to be chosen automatically is "auto" or None here; the worker chooses by the model and the
machine and reports the outcome in `WorkerInfo`. Reads neither environment nor files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which weights to serve, and how to compute with them."""

    directory: Path  # in the Hugging Face layout (`engine.checkpoint` converts others)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    # CPU weights. auto: keep the checkpoint's quantized blocks; none: expand them; int8, q4: keep
    # them and quantize all other weights, too.
    quantization: Literal["auto", "none", "int8", "q4"] = "auto"
    # int8: where a CPU weight is quantized, so is what it is multiplied with. Quicker, less exact.
    activation_quantization: Literal["none", "int8"] = "none"
    max_model_len: int | None = None  # None: the model's own
    num_threads: int | None = None  # CPU threads of the worker; None: all cores it may use
    pin_threads: Literal["auto", "always", "never"] = "auto"  # auto: if the server has a core left
    backend: Literal["auto", "native", "torch"] = "auto"  # kernels; auto: the fastest available
    exact: bool = True  # GPU: fail to load if a row's bits would depend on its batch
    enforce_eager: bool = False  # GPU: no CUDA graphs


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """The paged KV cache."""

    block_size: int = 16  # tokens per block
    kv_cache_memory_bytes: int | None = None  # None: a share of the free memory
    gpu_memory_utilization: float | None = None  # share that may be in use by all; None: 0.9
    num_blocks: int | None = None  # for later workers: as many as the first had, or fewer


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """How many sequences run at once, how many requests may wait, and in which order."""

    max_num_seqs: int = 64  # sequences running at once
    max_num_batched_tokens: int = 512  # tokens computed per step, decoding rows first
    max_num_queued_requests: int = 1024  # may wait beside those running; more are refused
    max_num_queued_tokens: int | None = None  # of all waiting requests; None: no limit
    policy: Literal["fcfs", "priority"] = "fcfs"  # oldest first, or lowest priority value first
    prefix_caching: bool = True  # share KV blocks among requests with a common prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitsConfig:
    """How tokens are drafted: by exit heads at intermediate layers and by prompt look-up."""

    enabled: bool = True
    heads: Path | None = None  # with heads.safetensors and heads.json; None: no exit heads
    lookup: bool = True  # draft by prompt look-up as well
    alternates: bool = True  # verify second candidates beside drafts where that pays
    threshold: float | None = None  # fixed confidence threshold; None: the cost-aware policy
    target_itl_s: float | None = None  # drafts keep steps within this; tokens are sent evenly
    max_draft_tokens: int = 15  # per row and step; the policy usually makes fewer
    learn: bool = False  # train the exit heads on verified traffic
    learn_share: float = 0.1  # largest share of the worker's time for learning
    learn_directory: Path | None = None  # where learned heads go; None: the cache, by model


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisionConfig:
    """Timeouts after which a worker that hangs or is silent is replaced."""

    step_timeout_s: float = 300.0  # of one step; while loading, between signs of progress
    heartbeat_timeout_s: float = 10.0  # without a sign of life, whatever the worker is doing


@dataclass(frozen=True, slots=True, kw_only=True)
class StructureConfig:
    """Limits of the schemas, patterns and grammars that outputs have to follow."""

    timeout_s: float = 10.0  # of CPU time, to compile one of them


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatConfig:
    """How conversations become prompts."""

    template: str | None = None  # Jinja; None: the checkpoint's own
    variables: Mapping[str, Any] = field(default_factory=dict)  # a request's own win over these


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The whole configuration of an engine."""

    model: ModelConfig
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    exits: ExitsConfig = field(default_factory=ExitsConfig)
    supervision: SupervisionConfig = field(default_factory=SupervisionConfig)
    structure: StructureConfig = field(default_factory=StructureConfig)
    chat: ChatConfig = field(default_factory=ChatConfig)
    worker: Literal["process", "inline"] = "process"
