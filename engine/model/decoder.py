"""The decoder of the Llama, Mistral, Qwen2 and Qwen3 families, as segments of layers.

Three calls: `embed`, `run` (a segment of layers over a batch of tokens), `logits`. Which tokens run
through which segment, and when, is the decode step's affair: the decoder knows nothing of exits,
sequences or sampling.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.model.block_weight import BlockWeight, concatenate
from engine.model.ops.interface import AttentionParams, DecoderLayer, LayerCache, Ops, TokenBatch
from engine.model.rope import rope_tables
from engine.model.spec import ModelSpec
from engine.model.weights import WeightReader

Progress = Callable[[str, float], None]


class WeightSource(Protocol):
    """Where weights come from, by Hugging Face's names: a checkpoint, or a benchmark's dice."""

    def take(self, name: str) -> Tensor:
        """A tensor."""

    def take_matrix(self, name: str) -> Tensor | BlockWeight:
        """A matrix, as blocks if they are kept."""

    def fingerprint(self) -> str:
        """What tells these weights from others."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Half-open range [start, end) of layers."""

    start: int
    end: int

    @property
    def num_layers(self) -> int:
        """0 before an exit at layer 0: its head reads embeddings."""
        return self.end - self.start


class Decoder:
    """A loaded model on one backend."""

    def __init__(
        self,
        spec: ModelSpec,
        ops: Ops,
        *,
        embedding: Any,
        layers: Sequence[DecoderLayer],
        final_norm: Tensor,
        lm_head: Any,
        fingerprint: str = "",
    ) -> None:
        self.spec = spec
        self.ops = ops
        self.layers = list(layers)
        self.final_norm = final_norm
        self.fingerprint = fingerprint
        self._embedding = embedding
        self._lm_head = lm_head

    @classmethod
    def load(
        cls,
        directory: Path,
        ops: Ops,
        *,
        max_positions: int | None = None,
        keep_blocks: bool = False,
        progress: Progress | None = None,
    ) -> "Decoder":
        """Read a local HF directory layer by layer, packing as it goes.

        Args:
            max_positions: Length of the rotary tables; None: the model's own context.
            keep_blocks: Take weights that the checkpoint has in quantized blocks as they are.

        Raises:
            ModelLoadError: if the checkpoint is incomplete or not one we serve.
        """
        spec = ModelSpec.from_directory(directory)
        reader = WeightReader(directory, spec, keep_blocks=keep_blocks)
        decoder = cls.build(spec, reader, ops, max_positions=max_positions, progress=progress)
        reader.finish()
        return decoder

    @classmethod
    def build(
        cls,
        spec: ModelSpec,
        source: WeightSource,
        ops: Ops,
        *,
        max_positions: int | None = None,
        progress: Progress | None = None,
    ) -> "Decoder":
        """Pack weights layer by layer, each taken from the source once; arguments as for `load`."""
        fingerprint = source.fingerprint()
        cos, sin = rope_tables(spec, max_positions or spec.max_position_embeddings)
        rope = (cos.to(ops.device), sin.to(ops.device))
        embedding = ops.pack(source.take_matrix("model.embed_tokens.weight"), is_table=True)
        layers = []
        for index in range(spec.num_layers):
            layers.append(_load_layer(source, spec, ops, index, rope))
            if progress is not None:
                progress("loading weights", (index + 1) / spec.num_layers)
        final_norm = _vector(source, ops, "model.norm.weight")
        lm_head = embedding
        if not spec.tie_word_embeddings:
            lm_head = ops.pack(source.take_matrix("lm_head.weight"), is_table=True)
        return cls(
            spec,
            ops,
            embedding=embedding,
            layers=layers,
            final_norm=final_norm,
            lm_head=lm_head,
            fingerprint=fingerprint,
        )

    def embed(self, token_ids: Tensor) -> Tensor:
        """Token ids [T] int32 -> hidden states [T, E]."""
        return self.ops.embed(token_ids, self._embedding)

    def run(
        self, hidden: Tensor, segment: Segment, cache: Sequence[LayerCache], batch: TokenBatch
    ) -> Tensor:
        """Run layers [start, end) over hidden [T, E]; writes their K and V and returns the new
        hidden [T, E].

        Every position before a token's own, in its row, must already be in the cache of these
        layers or be in this call. An empty segment leaves hidden as it is.
        """
        if not segment.num_layers:
            return hidden
        chosen = slice(segment.start, segment.end)
        return self.ops.run_layers(
            hidden, self.layers[chosen], cache[chosen], batch, self.spec.norm_eps
        )

    def lm_head_rows(self, token_ids: Tensor) -> Tensor:
        """Rows of the LM head [T, E] for token ids [T] int32."""
        return self.ops.embed(token_ids, self._lm_head)

    def logits(self, hidden: Tensor) -> Tensor:
        """Last hidden states [T, E] -> logits [T, V] in float32."""
        logits = self.ops.linear(
            hidden, self._lm_head, norm=self.final_norm, eps=self.spec.norm_eps
        )
        return logits.float()

    def normalize(self, hidden: Tensor) -> Tensor:
        """One last hidden state [E] -> the final norm's output [E] in float64, which is what the
        LM head multiplies.
        """
        wide = hidden.double()
        scale = (wide.square().mean() + self.spec.norm_eps).rsqrt()
        return wide * scale * self.final_norm.double()


def _vector(source: WeightSource, ops: Ops, name: str) -> Tensor:
    return source.take(name).to(ops.device, ops.dtype).contiguous().clone()


def _stack(weights: Sequence[Tensor | BlockWeight]) -> Tensor | BlockWeight:
    """One weight below the other; blocks stay blocks where all have the same form."""
    blocks = [weight for weight in weights if isinstance(weight, BlockWeight)]
    if len(blocks) == len(weights) and len({weight.bits for weight in blocks}) == 1:
        return concatenate(blocks)
    return torch.cat([w.dequantize() if isinstance(w, BlockWeight) else w for w in weights])


def _load_layer(
    source: WeightSource, spec: ModelSpec, ops: Ops, index: int, rope: tuple[Tensor, Tensor]
) -> DecoderLayer:
    prefix = f"model.layers.{index}."

    def packed(names: Sequence[str], has_bias: bool) -> Any:
        weight = _stack([source.take_matrix(f"{prefix}{name}.weight") for name in names])
        bias = None
        if has_bias:
            bias = torch.cat([source.take(f"{prefix}{name}.bias") for name in names])
        return ops.pack(weight, bias)

    attention = AttentionParams(
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_size=spec.head_size,
        scale=spec.head_size**-0.5,
        rope_cos=rope[0],
        rope_sin=rope[1],
        norm_eps=spec.norm_eps,
        q_norm=_vector(source, ops, f"{prefix}self_attn.q_norm.weight") if spec.qk_norm else None,
        k_norm=_vector(source, ops, f"{prefix}self_attn.k_norm.weight") if spec.qk_norm else None,
        sliding_window=spec.sliding_window[index],
    )
    return DecoderLayer(
        input_norm=_vector(source, ops, f"{prefix}input_layernorm.weight"),
        qkv=packed([f"self_attn.{name}_proj" for name in "qkv"], spec.qkv_bias),
        attention=attention,
        output=packed(["self_attn.o_proj"], spec.o_bias),
        mlp_norm=_vector(source, ops, f"{prefix}post_attention_layernorm.weight"),
        gate_up=packed(["mlp.gate_proj", "mlp.up_proj"], spec.mlp_bias),
        down=packed(["mlp.down_proj"], spec.mlp_bias),
    )
