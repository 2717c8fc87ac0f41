"""Converts the default model and compiles the kernels before a test run.

Otherwise the first tests would do so in every process of the run at once.
"""

from default_model import ALIAS

from engine.checkpoint import resolve_model
from engine.checkpoint.builtin import builtin_file
from engine.model.ops.native_ops import NativeOps

if __name__ == "__main__":
    NativeOps.unavailable_reason()
    if builtin_file(ALIAS) is not None:
        resolve_model(ALIAS)
