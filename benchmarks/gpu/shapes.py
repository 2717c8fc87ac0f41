"""Models of known shapes with random weights, the same for our engine and for transformers."""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.model.decoder import Decoder
from engine.model.exit_head import FORMAT_VERSION
from engine.model.ops.interface import Ops
from engine.model.spec import ModelSpec
from engine.model.weights import expected_shapes

_FINGERPRINT = "random"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a Llama model."""

    name: str
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    is_tied: bool
    positions: int
    reduced_vocabulary: int  # size of its exit heads' vocabulary

    def config(self) -> dict[str, Any]:
        """Return the content of config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.hidden // self.heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.positions,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": self.is_tied,
            "eos_token_id": 0,
            "bos_token_id": 1,
            "torch_dtype": "bfloat16",
        }

    def write(self, directory: Path) -> Path:
        """Write a directory with config.json and no weights."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(self.config()))
        return directory


LLAMA_8B = Shape(
    name="8B",
    hidden=4096,
    feed_forward=14336,
    layers=32,
    heads=32,
    kv_heads=8,
    vocabulary=128256,
    is_tied=False,
    positions=4096,
    reduced_vocabulary=32768,
)
SMOLLM_135M = Shape(
    name="135M",
    hidden=576,
    feed_forward=1536,
    layers=30,
    heads=9,
    kv_heads=3,
    vocabulary=49152,
    is_tied=True,
    positions=2048,
    reduced_vocabulary=4096,
)
TINY = Shape(
    name="tiny",
    hidden=64,
    feed_forward=96,
    layers=8,
    heads=4,
    kv_heads=2,
    vocabulary=512,
    is_tied=False,
    positions=128,
    reduced_vocabulary=128,
)


class RandomWeights:
    """Random weights, drawn when they are needed; a name always gets the same ones.

    Implements `engine.model.decoder.WeightSource`.
    """

    def __init__(self, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> None:
        self._shapes = dict(expected_shapes(spec))
        self._device = device
        self._dtype = dtype

    @property
    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._shapes)

    def take(self, name: str) -> Tensor:
        """Draw a tensor; matrices are scaled so that outputs have the magnitude of inputs."""
        generator = torch.Generator(self._device).manual_seed(zlib.crc32(name.encode()))
        shape = self._shapes[name]
        values = torch.randn(*shape, generator=generator, device=self._device, dtype=torch.float32)
        if len(shape) == 1:
            return (1 + 0.1 * values).to(self._dtype)
        scale = 1.0 if "embed" in name else shape[1] ** -0.5
        return (values * scale).to(self._dtype)

    def take_matrix(self, name: str) -> Tensor:
        """See `take`."""
        return self.take(name)

    def fingerprint(self) -> str:
        """Return the fingerprint of all random weights, for which `write_heads` makes heads."""
        return _FINGERPRINT


def random_decoder(shape: Shape, directory: Path, ops: Ops) -> Decoder:
    """Build our decoder of a shape that was written to a directory."""
    spec = ModelSpec.from_directory(directory)
    return Decoder.build(spec, RandomWeights(spec, ops.device, ops.dtype), ops)


def write_heads(shape: Shape, exit_layers: Sequence[int], directory: Path) -> Path:
    """Write untrained heads for random weights; they cost as much as trained ones."""
    generator = torch.Generator().manual_seed(0)
    size = shape.hidden

    def random(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator) * size**-0.5

    tensors = {"vocabulary": torch.arange(shape.reduced_vocabulary, dtype=torch.int32)}
    for layer in exit_layers:
        prefix = f"exits.{layer}."
        tensors |= {f"{prefix}{n}": torch.ones(size) for n in ("norm", "previous_norm")}
        tensors |= {f"{prefix}{n}": random(size, size) for n in ("project", "project_previous")}
        tensors[f"{prefix}other"] = random(size)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(directory / "heads.safetensors"))
    rates = {"edges": [0.5, 1.0], "greedy": [0.5, 0.9], "sampled": [0.5, 0.9]}
    facts = {
        "format_version": FORMAT_VERSION,
        "hidden_size": size,
        "fingerprint": _FINGERPRINT,
        "exit_layers": list(exit_layers),
        "calibration": {str(layer): rates for layer in exit_layers},
    }
    (directory / "heads.json").write_text(json.dumps(facts))
    return directory


def transformers_model(
    shape: Shape, spec: ModelSpec, device: torch.device, dtype: torch.dtype
) -> Any:
    """Build transformers' model with the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{k: v for k, v in shape.config().items() if k != "architectures"})
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    source = RandomWeights(spec, device, dtype)
    weights = {name: source.take(name) for name in source.names}
    if shape.is_tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, assign=True)
    with torch.device(device):  # computed tables are not in the checkpoint: still on "meta"
        model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    return model.eval()
