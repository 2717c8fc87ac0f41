"""Selects the kernels and data types that the configuration asks for on this machine."""

import logging
import platform
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint.directory import has_blocks
from engine.config import EngineConfig, ModelConfig
from engine.errors import ModelLoadError
from engine.model.ops.cuda_ops import CudaOps
from engine.model.ops.interface import Ops
from engine.model.ops.native.linear import Format
from engine.model.ops.native_ops import NativeOps
from engine.model.ops.torch_ops import TorchOps
from engine.model.spec import ModelSpec
from engine.worker.cores import cores_to_pin, usable_cores

logger = logging.getLogger(__name__)


def select_ops(config: EngineConfig, spec: ModelSpec) -> Ops:
    """Return the backend for the configured device; on a CPU, torch if native kernels do not build.

    Raises:
        ModelLoadError: What is asked for by name is not available.
    """
    model = config.model
    device = model.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        return _cuda_ops(model, spec)
    if model.backend != "torch":
        reason = NativeOps.unavailable_reason()
        if reason is None:
            return _native_ops(config)
        if model.backend == "native":
            raise ModelLoadError(f"--backend native: {reason}")
        logger.info("native kernels are not available (%s): computing with torch", reason)
    chosen = (
        ("dtype", model.dtype),
        ("quantization", model.quantization),
        ("activation-quantization", model.activation_quantization),
        ("pin-threads", model.pin_threads),
    )
    for option, value in chosen:
        if value not in ("auto", "none", "float32", "never"):
            raise ModelLoadError(f"--{option} {value}: on a CPU only the native kernels offer it")
    return TorchOps("cpu")


def _cuda_ops(model: ModelConfig, spec: ModelSpec) -> Ops:
    """Return the Triton kernels, or plain torch if it is asked for or there is no Triton.

    Raises:
        ModelLoadError: There is no GPU, or an option asked for by name is for a CPU only.
    """
    if not torch.cuda.is_available():
        raise ModelLoadError("--device cuda: torch sees no CUDA device")
    chosen = (
        ("backend", model.backend),
        ("quantization", model.quantization),
        ("activation-quantization", model.activation_quantization),
        ("pin-threads", model.pin_threads),
    )
    for option, value in chosen:
        if value in ("native", "int8", "q4", "always"):
            raise ModelLoadError(f"--{option} {value}: only on a CPU")
    # A float32 checkpoint is served in bfloat16 unless float32 is asked for.
    stored = "bfloat16" if spec.dtype == "float32" else spec.dtype
    dtype = _torch_dtype(stored if model.dtype == "auto" else model.dtype)
    if model.backend == "torch":
        return TorchOps("cuda", dtype)
    reason = CudaOps.unavailable_reason()
    if reason is not None:
        logger.warning("our CUDA kernels are not available (%s): computing with torch", reason)
        return TorchOps("cuda", dtype)
    return CudaOps(dtype, exact=model.exact)


def _native_ops(config: EngineConfig) -> NativeOps:
    """Return the native kernels, with weights kept as the configuration says.

    Raises:
        ModelLoadError: They do not have the data type, or no weight is quantized as activations
            are to be.
    """
    model = config.model
    if model.dtype == "float16":
        raise ModelLoadError("--dtype float16: on a CPU weights are float32 or bfloat16")
    rounds_activations = model.activation_quantization == "int8"
    if rounds_activations and not _has_quantized_weights(model):
        raise ModelLoadError(
            "--activation-quantization int8: no weight is quantized; try --quantization int8"
        )
    floats = Format.BFLOAT16 if model.dtype == "bfloat16" else Format.FLOAT32
    weights = {"int8": Format.INT8, "q4": Format.INT4}.get(model.quantization, floats)
    num_cores = usable_cores()
    threads = model.num_threads or num_cores
    if threads > num_cores:
        logger.warning(
            "--threads %d on %d cores: in every step threads wait for others to leave a core",
            threads,
            num_cores,
        )
    cores = cores_to_pin(threads, model.pin_threads)
    # 8 bits: heads choose drafts, not output, and reading their weights is what they cost.
    return NativeOps(threads, weights, Format.INT8, cores, rounds_activations=rounds_activations)


def _has_quantized_weights(model: ModelConfig) -> bool:
    """Whether the native kernels keep weights in codes."""
    if model.quantization == "auto":
        return has_blocks(model.directory)
    return model.quantization != "none"


def keeps_blocks(model: ModelConfig, ops: Ops) -> bool:
    """Whether weights stay the blocks of a GGUF file that they were stored as."""
    is_native = isinstance(ops, NativeOps)
    return is_native and model.quantization != "none" and has_blocks(model.directory)


def describe_numbers(model: ModelConfig, ops: Ops) -> str:
    """Describe the data type of activations, and of weights if it is another."""
    parts = [str(ops.dtype).removeprefix("torch.")]
    if keeps_blocks(model, ops):
        parts.append("weights in the file's own blocks")
    elif isinstance(ops, NativeOps) and ops.form is not Format.FLOAT32:
        parts.append(f"{ops.form.name.lower()} weights")
    if isinstance(ops, NativeOps) and ops.rounds_activations:
        parts.append("int8 activations")
    return ", ".join(parts)


def describe_heads(ops: Ops) -> str:
    """Describe the data type of the weights of exit heads."""
    return ops.heads_form.name.lower() if isinstance(ops, NativeOps) else str(ops.dtype)


def describe_machine(config: EngineConfig, ops: Ops) -> str:
    """Describe what computes; two workers with the same description are equally fast."""
    host = f"Python {platform.python_version()}, torch {torch.__version__}"
    if ops.device.type == "cuda":
        device = torch.cuda.get_device_name()
        return f"{device}, eager {config.model.enforce_eager}, {ops.name}, {host}"
    kernels = ops.build if isinstance(ops, NativeOps) else ops.name
    threads = config.model.num_threads or usable_cores()
    return f"{_cpu_name()}, {threads} threads, {kernels}, {host}"


def limit_torch_threads(config: EngineConfig, ops: Ops) -> None:
    """Let only one pool of threads compute: the native kernels' own, or torch's.

    With both, torch's threads spin on the cores that the kernels need, and an operation on one row
    of logits took a millisecond instead of microseconds.
    """
    threads = config.model.num_threads or usable_cores()
    torch.set_num_threads(1 if ops.name == "native" else threads)


def _torch_dtype(name: str) -> torch.dtype:
    dtype: Any = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _cpu_name() -> str:
    """Return the CPU's name from Linux's /proc, else from `platform`."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
