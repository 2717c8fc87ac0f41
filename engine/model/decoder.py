"""The decoder of the Llama, Mistral, Qwen2 and Qwen3 families, as segments of layers.

Its main calls are `embed`, `run` (a segment of layers over a batch of tokens) and `logits`. The
decode step decides which tokens run through which segment, and when: the decoder knows nothing of
exits, sequences or sampling.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.checkpoint.cache import Progress
from engine.model.block_weight import BlockWeight, concatenate
from engine.model.ops.interface import AttentionParams, DecoderLayer, LayerCache, Ops, TokenBatch
from engine.model.rope import rope_tables
from engine.model.spec import ModelSpec
from engine.model.weights import WeightReader


class WeightSource(Protocol):
    """A source of weights by Hugging Face's names: a checkpoint, or random ones in benchmarks."""

    def take(self, name: str) -> Tensor:
        """Return the tensor of this name."""

    def take_matrix(self, name: str) -> Tensor | BlockWeight:
        """Return the matrix of this name, as quantized blocks if the source keeps them."""

    def fingerprint(self) -> str:
        """Return a string that identifies these weights."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The half-open range [start, end) of layers."""

    start: int
    end: int

    @property
    def num_layers(self) -> int:
        """Number of layers; 0 before an exit at layer 0, whose head reads embeddings."""
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
            max_positions: Length of the rotary tables; None means the model's own context length.
            keep_blocks: Use the quantized blocks of weights that the checkpoint stores as blocks.

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
        """Return the embeddings [T, E] of token ids [T] int32."""
        return self.ops.embed(token_ids, self._embedding)

    def run(
        self, hidden: Tensor, segment: Segment, cache: Sequence[LayerCache], batch: TokenBatch
    ) -> Tensor:
        """Run a segment's layers over hidden [T, E]: writes K and V, returns the new hidden [T, E].

        For every token, all earlier positions of its row must already be in the cache of these
        layers or be in this call. An empty segment returns hidden as it is.
        """
        if not segment.num_layers:
            return hidden
        chosen = slice(segment.start, segment.end)
        return self.ops.run_layers(
            hidden, self.layers[chosen], cache[chosen], batch, self.spec.norm_eps
        )

    def lm_head_rows(self, token_ids: Tensor) -> Tensor:
        """Return the rows [T, E] of the LM head for token ids [T] int32."""
        return self.ops.embed(token_ids, self._lm_head)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [T, V] in float32 of last hidden states [T, E]."""
        logits = self.ops.linear(
            hidden, self._lm_head, norm=self.final_norm, eps=self.spec.norm_eps
        )
        return logits.float()

    def normalize(self, hidden: Tensor) -> Tensor:
        """Apply the final norm to one last hidden state [E]: returns the LM head's input [E] in
        float64.
        """
        wide = hidden.double()
        scale = (wide.square().mean() + self.spec.norm_eps).rsqrt()
        return wide * scale * self.final_norm.double()


def _vector(source: WeightSource, ops: Ops, name: str) -> Tensor:
    return source.take(name).to(ops.device, ops.dtype).contiguous().clone()


def _stack(weights: Sequence[Tensor | BlockWeight]) -> Tensor | BlockWeight:
    """Stack weights one below the other; blocks stay blocks if all have the same bits."""
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
