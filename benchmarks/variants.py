"""Exit heads with something taken away, as directories like those that `heads train` writes.

Nothing is trained anew: a variant shows what trained heads lose without a part. Heads that were
trained without it come from `heads train` and are given to `bench ablation --retrained`.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]
Facts = Mapping[str, object]


def without_previous_token(tensors: Tensors, facts: Facts) -> Tensors:
    """Remove the input that reads the previous token's last hidden state."""
    return {
        name: torch.zeros_like(tensor) if name.endswith(".project_previous") else tensor
        for name, tensor in tensors.items()
    }


def with_full_vocabulary(tensors: Tensors, facts: Facts) -> Tensors:
    """Give every token a logit, so that nothing is "other"."""
    size = int(str(facts["vocab_size"]))
    changed = {
        name: torch.zeros_like(tensor) if name.endswith(".other") else tensor
        for name, tensor in tensors.items()
    }
    return changed | {"vocabulary": torch.arange(size, dtype=tensors["vocabulary"].dtype)}


def untrained(tensors: Tensors, facts: Facts) -> Tensors:
    """Apply the model's final norm and LM head to the hidden state as it is (logit lens)."""
    changed = without_previous_token(with_full_vocabulary(tensors, facts), facts)
    changed = {name: each for name, each in changed.items() if ".refinement." not in name}
    for name, tensor in changed.items():
        if name.endswith(".project"):
            changed[name] = torch.eye(len(tensor), dtype=tensor.dtype)
        elif name.endswith(".norm"):
            changed[name] = torch.ones_like(tensor)
    return changed


def noise(tensors: Tensors, facts: Facts) -> Tensors:
    """Replace matrices with random numbers of the same standard deviation."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(tensor.shape, generator=generator).to(tensor.dtype) * float(tensor.std())
        if tensor.ndim == 2
        else tensor
        for name, tensor in tensors.items()
    }


def write_variant(
    heads: Path, target: Path, change: Callable[[Tensors, Facts], Tensors], vocab_size: int
) -> Path:
    """Write changed heads to a directory, and return it."""
    target.mkdir(parents=True)
    shutil.copy(heads / "heads.json", target)
    facts = json.loads((heads / "heads.json").read_text()) | {"vocab_size": vocab_size}
    changed = change(load_file(str(heads / "heads.safetensors")), facts)
    contiguous = {name: tensor.contiguous() for name, tensor in changed.items()}
    save_file(contiguous, str(target / "heads.safetensors"))
    return target
