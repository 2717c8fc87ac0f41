"""The server's settings: one definition per flag; flags, YAML keys and environment follow from it.

A field `max_num_seqs` is `--max-num-seqs`, the YAML key `max-num-seqs` (or with underscores) and
the variable `ADADECODE_MAX_NUM_SEQS`. Reading and merging the sources is `settings_sources`'
affair; turning the outcome into an `EngineConfig` is done here, so that the engine needs to know
nothing of flags.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from engine.config import CacheConfig, EngineConfig, ExitsConfig, ModelConfig, SchedulerConfig

DEFAULT_MODEL = "smollm2-135m-instruct"

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?B)?", re.IGNORECASE)


def _parse_size(value: object) -> object:
    """512M and 512MiB are 512 * 1024**2 bytes, 512MB is 512 * 1000**2; numbers pass."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError("should be a number of bytes such as 536870912, 512M or 2G")
    number, unit, suffix = match.groups()
    base = 1000 if suffix and suffix.lower() == "b" else 1024
    return int(float(number) * base ** " KMGT".index(unit.upper() or " "))


def _parse_list(value: object) -> object:
    """Commas separate the items where only one string can be given (environment, YAML scalar)."""
    if isinstance(value, str):
        return tuple(item for item in (part.strip() for part in value.split(",")) if item)
    return value


Size = Annotated[int, BeforeValidator(_parse_size)]


def _flag(default: Any, group: str, help_text: str, **bounds: Any) -> Any:
    return Field(default, description=help_text, json_schema_extra={"group": group}, **bounds)


class ServerSettings(BaseModel):
    """Everything `adadecode serve` can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str = _flag(
        DEFAULT_MODEL, "model", "Hugging Face directory, .gguf file, hub id or built-in alias."
    )
    served_model_name: Annotated[tuple[str, ...], BeforeValidator(_parse_list)] = _flag(
        (), "model", "Name in the API instead of MODEL; repeat for several."
    )
    max_model_len: int | None = _flag(
        None, "model", "Longest prompt plus output, in tokens (default: the model's own).", ge=2
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _flag(
        "auto", "model", "Data type of weights and activations."
    )
    device: Literal["auto", "cpu", "cuda"] = _flag("auto", "model", "Where the model runs.")
    threads: int | None = _flag(
        None, "model", "CPU threads of the worker (default: all cores).", ge=1, le=1024
    )
    backend: Literal["auto", "native", "torch"] = _flag("auto", "model", "CPU kernels.")
    seed: int | None = _flag(
        None, "model", "Makes the seeds drawn for requests without one repeatable.", ge=0
    )

    max_num_seqs: int = _flag(64, "scheduler", "Sequences running at once.", ge=1, le=4096)
    max_num_batched_tokens: int = _flag(
        512, "scheduler", "Tokens computed per step, decoding rows first.", ge=1
    )
    max_num_queued_requests: int = _flag(
        1024, "scheduler", "Waiting requests; more are answered 503 with Retry-After.", ge=0
    )
    kv_cache_memory: Size | None = _flag(
        None, "scheduler", "KV cache, e.g. 512M or 2G (default: from free memory).", ge=1
    )
    block_size: int = _flag(16, "scheduler", "Tokens per KV block.", ge=1, le=1024)

    early_exit: bool = _flag(
        True, "early exit", "Decode with early exits; never changes the output."
    )
    heads: Path | None = _flag(
        None, "early exit", "Directory of exit heads (default: those that belong to MODEL)."
    )
    exit_threshold: float | None = _flag(
        None, "early exit", "Fixed confidence threshold (default: cost-aware policy).", ge=0, le=1
    )
    max_draft_tokens: int = _flag(
        5, "early exit", "Longest run of drafts before verification.", ge=0, le=16
    )

    host: str = _flag("127.0.0.1", "http", "Address to listen on.")
    port: int = _flag(8000, "http", "Port to listen on; 0 picks a free one.", ge=0, le=65535)
    api_key: Annotated[tuple[SecretStr, ...], BeforeValidator(_parse_list)] = _flag(
        (), "http", "Require this key (Authorization: Bearer); repeat for several."
    )
    max_request_bytes: Size = _flag(
        "4M", "http", "Largest request body.", ge=1, validate_default=True
    )
    max_logprobs: int = _flag(20, "http", "Most top log-probabilities per token.", ge=0, le=20)
    sse_keep_alive_interval: float = _flag(
        15.0, "http", "Seconds between comments on a silent stream; 0 = none.", ge=0
    )
    shutdown_timeout: float = _flag(
        30.0, "http", "Seconds that open requests get to finish at SIGTERM.", ge=0
    )
    log_level: Literal["debug", "info", "warning", "error"] = _flag(
        "info", "http", "Log verbosity."
    )

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names that requests may use; the first is the one answers carry."""
        return self.served_model_name or (self.model,)

    def engine_config(self, directory: Path, heads: Path | None) -> EngineConfig:
        """The engine's share, for a model resolved to `directory` and its exit heads."""
        return EngineConfig(
            model=ModelConfig(
                directory=directory,
                device=self.device,
                dtype=self.dtype,
                max_model_len=self.max_model_len,
                num_threads=self.threads,
                backend=self.backend,
            ),
            cache=CacheConfig(
                block_size=self.block_size, kv_cache_memory_bytes=self.kv_cache_memory
            ),
            scheduler=SchedulerConfig(
                max_num_seqs=self.max_num_seqs,
                max_num_batched_tokens=self.max_num_batched_tokens,
                max_num_queued_requests=self.max_num_queued_requests,
            ),
            exits=ExitsConfig(
                enabled=self.early_exit,
                heads=heads if self.early_exit else None,
                threshold=self.exit_threshold,
                max_draft_tokens=self.max_draft_tokens,
            ),
        )
