"""Logits of every family we serve against transformers', on tiny random models, in any chunking."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from backends import available_ops
from decoding import Decoding
from torch import Tensor

from engine.checkpoint.directory import SUPPORTED_ARCHITECTURES
from engine.model.decoder import Decoder
from engine.model.ops.interface import Ops

pytestmark = pytest.mark.torch

PROMPT_LENGTH = 40
_SIZES: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "attn_implementation": "eager",
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_WINDOWS = {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 2}
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-3": ("Llama", {"rope_parameters": _LLAMA3}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 9}),
    "mistral-wide-heads": ("Mistral", {"head_dim": 32, "sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen2-windows": ("Qwen2", _WINDOWS),
    "qwen3": ("Qwen3", {}),
    "qwen3-windows": ("Qwen3", _WINDOWS | {"tie_word_embeddings": True}),
}
_CHUNKINGS: dict[str, Callable[[int], list[int]]] = {
    "at once": lambda total: [total],
    "one by one": lambda total: [1] * total,
    "odd": lambda total: [3, 1, 17, 2, 5, total - 28],
}


def _save(name: str, directory: Path) -> Any:
    """Save a random model whose biases and norms have an effect; returns transformers' model."""
    import transformers

    family, options = _FAMILIES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**_SIZES | options)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[1] ** -0.5)
    model.save_pretrained(directory)
    return model


@pytest.fixture(scope="module", params=list(_FAMILIES))
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[int], Tensor]:
    """A saved model, a prompt, and transformers' logits [T, V] for it."""
    directory = tmp_path_factory.mktemp("model")
    model = _save(request.param, directory)
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(_SIZES["vocab_size"], (PROMPT_LENGTH,), generator=generator)
    with torch.inference_mode():
        logits = model(prompt[None]).logits[0]
    return directory, prompt.tolist(), logits


@pytest.mark.parametrize("chunking", list(_CHUNKINGS))
@pytest.mark.parametrize("ops", available_ops(), ids=lambda ops: ops.name)
def test_logits_equal_transformers(
    checkpoint: tuple[Path, list[int], Tensor], ops: Ops, chunking: str
) -> None:
    directory, prompt, expected = checkpoint
    decoding = Decoding(Decoder.load(directory, ops), PROMPT_LENGTH)
    start, logits = 0, []
    for size in _CHUNKINGS[chunking](PROMPT_LENGTH):
        logits.append(decoding.push(prompt[start : start + size]))
        start += size
    difference = (torch.cat(logits) - expected).abs().max().item()
    assert difference <= 1e-4
    assert expected.abs().max() > 1  # not all near zero


def test_every_architecture_is_covered() -> None:
    assert {f"{family}ForCausalLM" for family, _ in _FAMILIES.values()} == set(
        SUPPORTED_ARCHITECTURES
    )
