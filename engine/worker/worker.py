"""The data plane: loads the model and its heads, owns the KV tensors, executes plans. Anything on
the device starts here.

Holds nothing that a plan could not rebuild. Knows no HTTP, no text, no scheduling; speaks
`engine.plan` only.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint.directory import has_blocks
from engine.config import EngineConfig
from engine.errors import HeadsMismatch, ModelLoadError
from engine.model.decoder import Decoder
from engine.model.exit_head import ExitHeads, load_heads
from engine.model.ops.interface import LayerCache, Ops
from engine.model.ops.native_ops import Format, NativeOps
from engine.model.ops.torch_ops import TorchOps
from engine.model.spec import ModelSpec
from engine.plan import RowResult, StepPlan, StepResult, WorkerInfo
from engine.request import Structure
from engine.worker.cost_model import profile
from engine.worker.decode_step import DecodeStep, split_layers
from engine.worker.drafter import Drafter, HeadDrafter
from engine.worker.exit_policy import ExitPolicy
from engine.worker.grammars import Grammars
from engine.worker.kv_cache import allocate_cache, block_size_bytes
from engine.worker.sampler import Sampler
from engine.worker.sequence_state import SequenceState
from engine.worker.step_guard import StepGuard

logger = logging.getLogger(__name__)

Progress = Callable[[str, float], None]

_CPU_MEMORY_SHARE = 0.25  # of what is free; the rest is for the system and its file cache
_CUDA_MEMORY_SHARE = 0.85


class ModelWorker:
    """One model on one device, executing one step at a time."""

    def __init__(
        self,
        config: EngineConfig,
        progress: Progress | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        """Load everything.

        Args:
            progress: Called with (what is being done, fraction done).
            drafter: Drafts instead of the exit heads the configuration names (tests, benchmarks).

        Raises:
            ModelLoadError: if the model, its heads or the memory for them cannot be had.
        """
        self._config = config
        spec = ModelSpec.from_directory(config.model.directory)
        self._max_model_len = config.model.max_model_len or spec.max_position_embeddings
        ops = select_ops(config, spec)
        _limit_torch_threads(config, ops)
        model = config.model
        self._keeps_blocks = (
            ops.name == "native" and model.quantization != "none" and has_blocks(model.directory)
        )
        self._decoder = Decoder.load(
            config.model.directory,
            ops,
            max_positions=self._max_model_len,
            keep_blocks=self._keeps_blocks,
            progress=progress,
        )
        heads = self._load_heads() if drafter is None else None
        block_size = config.cache.block_size
        self._num_blocks = self._count_blocks()
        cache = allocate_cache(
            spec, self._num_blocks, block_size, dtype=ops.dtype, device=ops.device
        )
        self._policy: ExitPolicy | None = None
        if heads is not None:
            if progress is not None:
                progress("measuring what exits cost", 0.0)
            self._policy = self._make_policy(heads, cache)
            drafter = HeadDrafter(heads, Sampler(ops), self._policy, config.exits.threshold)
        self._exit_layers = [] if drafter is None else drafter.exit_layers
        self._step = StepGuard(DecodeStep(self._decoder, cache, block_size, drafter=drafter))
        self._states: dict[int, SequenceState] = {}
        self._grammars = Grammars(config.model.directory, spec.vocab_size, spec.eos_token_ids)

    @property
    def info(self) -> WorkerInfo:
        """What the control plane needs to know."""
        spec, ops = self._decoder.spec, self._decoder.ops
        return WorkerInfo(
            num_blocks=self._num_blocks,
            block_size=self._config.cache.block_size,
            vocab_size=spec.vocab_size,
            num_layers=spec.num_layers,
            max_model_len=self._max_model_len,
            eos_token_ids=list(spec.eos_token_ids),
            dtype=_describe_numbers(ops, has_blocks=self._keeps_blocks),
            device=str(ops.device),
            exit_layers=self._exit_layers,
            max_draft_tokens=self._config.exits.max_draft_tokens if self._exit_layers else 0,
            backend=ops.name,
        )

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step."""
        started = time.perf_counter()
        for sequence_id in plan.ended:
            self._states.pop(sequence_id, None)
        for start in plan.started:
            structure = self._grammars.open(start) if start.structure is not None else None
            self._states[start.sequence_id] = SequenceState(start, structure)
        results: list[RowResult] = []
        if plan.rows:
            states = [self._states[row.sequence_id] for row in plan.rows]
            results = self._step.run(plan.rows, states)
        policy = self._policy
        return StepResult(
            step_id=plan.step_id,
            rows=results,
            duration_s=time.perf_counter() - started,
            is_drafting=policy is not None and policy.is_drafting,
            policy_reason="no exit heads" if policy is None else policy.reason,
            speedup=1.0 if policy is None else policy.speedup,
        )

    def prepare(self, structure: Structure) -> None:
        """Compile a structure ahead of the sequence that brings it; safe beside steps."""
        self._grammars.prepare(structure)

    def _load_heads(self) -> ExitHeads | None:
        exits = self._config.exits
        if not exits.enabled:
            logger.info("early exits are off: decoding plainly")
            return None
        if exits.heads is None:
            logger.info(
                "no exit heads for this model: decoding plainly (see `adadecode heads train`)"
            )
            return None
        if not exits.heads.is_dir():
            raise HeadsMismatch(f"exit heads: {exits.heads} is not a directory")
        return load_heads(exits.heads, self._decoder)

    def _make_policy(self, heads: ExitHeads, cache: Sequence[LayerCache]) -> ExitPolicy:
        segments = split_layers(self._decoder.spec.num_layers, heads.exit_layers)
        cost = profile(self._decoder, heads, segments, cache, self._config.cache.block_size)
        return ExitPolicy(heads.exit_layers, heads.calibration, cost)

    def _count_blocks(self) -> int:
        """Blocks the memory budget buys, at most what all sequences at full length could use."""
        config, spec, ops = self._config, self._decoder.spec, self._decoder.ops
        block_size = config.cache.block_size
        per_block = block_size_bytes(spec, block_size, ops.dtype)
        as_before = config.cache.num_blocks
        if as_before is not None and as_before * per_block <= _free_bytes(ops.device):
            return as_before
        budget = config.cache.kv_cache_memory_bytes
        if budget is None:
            budget = _default_budget(ops.device)
        most = config.scheduler.max_num_seqs * -(-self._max_model_len // block_size)
        if as_before is not None:  # something else has taken the memory that the first worker had
            budget, most = min(budget, _default_budget(ops.device)), as_before
        num_blocks = min(budget // per_block, most)
        if num_blocks < 1:
            raise ModelLoadError(
                f"--kv-cache-memory: {budget} bytes do not hold one block of {per_block} bytes"
            )
        return num_blocks


def select_ops(config: EngineConfig, spec: ModelSpec) -> Ops:
    """The backend for the configured device: native kernels on a CPU where they build, else torch.

    Raises:
        ModelLoadError: if what is asked for by name is not there.
    """
    model = config.model
    device = model.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ModelLoadError("--device cuda: torch sees no CUDA device")
        name = spec.dtype if model.dtype == "auto" else model.dtype
        return TorchOps("cuda", _torch_dtype(name))
    if model.backend != "torch":
        reason = NativeOps.unavailable_reason()
        if reason is None:
            return _native_ops(config)
        if model.backend == "native":
            raise ModelLoadError(f"--backend native: {reason}")
        logger.info("native kernels are not available (%s): computing with torch", reason)
    for option, value in (("dtype", model.dtype), ("quantization", model.quantization)):
        if value not in ("auto", "none", "float32"):
            raise ModelLoadError(f"--{option} {value}: on a CPU only the native kernels offer it")
    return TorchOps("cpu")


def _native_ops(config: EngineConfig) -> NativeOps:
    """The native kernels, with weights kept as the configuration says.

    Raises:
        ModelLoadError: for a data type that they do not have.
    """
    model = config.model
    if model.dtype == "float16":
        raise ModelLoadError("--dtype float16: on a CPU weights are float32 or bfloat16")
    floats = Format.BFLOAT16 if model.dtype == "bfloat16" else Format.FLOAT32
    weights = {"int8": Format.INT8, "q4": Format.INT4}.get(model.quantization, floats)
    is_quantized = weights in (Format.INT8, Format.INT4) or (
        model.quantization == "auto" and has_blocks(model.directory)
    )
    threads = model.num_threads or os.cpu_count() or 1
    return NativeOps(threads, weights, Format.INT8 if is_quantized else floats)


def _describe_numbers(ops: Ops, *, has_blocks: bool) -> str:
    """The data type of activations, and how weights are kept where that is another."""
    name = str(ops.dtype).removeprefix("torch.")
    if has_blocks:
        return f"{name}, weights in the file's own blocks"
    if isinstance(ops, NativeOps) and ops.form is not Format.FLOAT32:
        return f"{name}, {ops.form.name.lower()} weights"
    return name


def _limit_torch_threads(config: EngineConfig, ops: Ops) -> None:
    """One pool of threads computes: the native kernels' own, or torch's.

    With both, torch's threads spin on the cores that the kernels need: an operation on one row of
    logits took a millisecond instead of microseconds.
    """
    threads = config.model.num_threads or os.cpu_count() or 1
    torch.set_num_threads(1 if ops.name == "native" else threads)


def _torch_dtype(name: str) -> torch.dtype:
    dtype: Any = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _default_budget(device: torch.device) -> int:
    share = _CUDA_MEMORY_SHARE if device.type == "cuda" else _CPU_MEMORY_SHARE
    return int(_free_bytes(device) * share)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    with suppress(OSError):  # what the system would give up counts as free
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
