"""The definition of a decoder layer: `Ops.run_layers` made of a backend's smaller operations.

Backends that compute layers in a way of their own are tested against it. Knows only `interface.py`.
"""

from collections.abc import Sequence

from torch import Tensor

from engine.model.ops.interface import DecoderLayer, LayerCache, Ops, TokenBatch


def run_layers(
    ops: Ops,
    hidden: Tensor,
    layers: Sequence[DecoderLayer],
    caches: Sequence[LayerCache],
    batch: TokenBatch,
    eps: float,
) -> Tensor:
    """See `Ops.run_layers`."""
    for layer, cache in zip(layers, caches, strict=True):
        qkv = ops.linear(hidden, layer.qkv, norm=layer.input_norm, eps=eps)
        attended = ops.attention(qkv, layer.attention, cache, batch)
        hidden = ops.linear(attended, layer.output, residual=hidden)
        activated = ops.gate_up(hidden, layer.gate_up, norm=layer.mlp_norm, eps=eps)
        hidden = ops.linear(activated, layer.down, residual=hidden)
    return hidden
