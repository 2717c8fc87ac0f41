"""Safetensors files that are written atomically."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from training.whole_file import whole_file


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file, replacing an older one only once the new one is complete.

    It is written here rather than by `save_file`, whose files only their owner can read, and whose
    errors, such as a full disk, are no OSError.
    """
    content = save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()})
    with whole_file(path) as partial:
        partial.write_bytes(content)
