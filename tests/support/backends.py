"""The CPU backends that this machine can run."""

import pytest

from engine.model.ops.interface import Ops
from engine.model.ops.native.linear import CODES, Format
from engine.model.ops.native_ops import NativeOps
from engine.model.ops.torch_ops import TorchOps

needs_native = pytest.mark.skipif(
    NativeOps.unavailable_reason() is not None, reason="native kernels are not available"
)


def available_ops() -> list[Ops]:
    """Return plain torch, and native kernels where there is a C compiler."""
    backends: list[Ops] = [TorchOps("cpu")]
    if NativeOps.unavailable_reason() is None:
        backends.append(NativeOps(2))
    return backends


def ops_of_every_form() -> list[Ops]:
    """Return `available_ops`, and native kernels with weights in each smaller form; those of codes
    with activations rounded as well.
    """
    backends = available_ops()
    if NativeOps.unavailable_reason() is None:
        backends += [NativeOps(2, form, form) for form in Format if form is not Format.FLOAT32]
        backends += [NativeOps(2, form, form, rounds_activations=True) for form in CODES]
    return backends


def form_name(ops: Ops) -> str:
    """Return a name for a backend and the form of its weights, for test ids."""
    if not isinstance(ops, NativeOps):
        return ops.name
    return f"{ops.name}-{ops.form.name.lower()}{'-rounded' if ops.rounds_activations else ''}"
