"""The CPU backends this machine can run."""

from engine.model.ops.interface import Ops
from engine.model.ops.native_ops import NativeOps
from engine.model.ops.torch_ops import TorchOps


def available_ops() -> list[Ops]:
    """Plain torch always; native kernels where a C compiler is."""
    backends: list[Ops] = [TorchOps("cpu")]
    if NativeOps.unavailable_reason() is None:
        backends.append(NativeOps(2))
    return backends
