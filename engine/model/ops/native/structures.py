"""C structures of the Python objects that the kernels read, each built once.

The same objects come on every call, so structures are kept by the id of their source. Entries hold
their sources, so that an id is not reused.
"""

from collections.abc import Sequence
from ctypes import byref, pointer
from typing import Any, NamedTuple

import torch

from engine.model.ops.interface import (
    AttentionParams,
    DecoderLayer,
    LayerCache,
    PackedHead,
    TokenBatch,
)
from engine.model.ops.native import library
from engine.model.ops.native.address import address, optional_address
from engine.model.ops.native.linear import PANEL, NativeLinear


class SegmentStructure(NamedTuple):
    """A segment's layers and caches as C structures."""

    native: Any  # array of library.Layer
    is_fused: bool  # whether C can run them in one call
    identity: tuple[int, ...]  # the ids of layers and caches
    sources: Sequence[tuple[DecoderLayer, LayerCache]]  # held, so that their ids stay theirs


class Structures:
    """The structures of one backend instance."""

    def __init__(self) -> None:
        self._params: dict[int, tuple[AttentionParams, library.AttentionParams]] = {}
        self._segments: dict[int, SegmentStructure] = {}
        self._heads: dict[int, tuple[PackedHead, library.Head]] = {}
        self._batch: tuple[TokenBatch, Any] | None = None

    def params(self, params: AttentionParams) -> library.AttentionParams:
        """Return the parameters as a C structure."""
        entry = self._params.get(id(params))
        if entry is None:
            native = library.AttentionParams(
                address(params.rope_cos),
                address(params.rope_sin),
                optional_address(params.q_norm),
                optional_address(params.k_norm),
                params.rope_cos.shape[0],
                params.num_heads,
                params.num_kv_heads,
                params.head_size,
                params.sliding_window or 0,
                params.scale,
                params.norm_eps,
            )
            entry = self._params[id(params)] = (params, native)
        return entry[1]

    def head(self, head: PackedHead) -> library.Head:
        """Return the head as a C structure."""
        entry = self._heads.get(id(head))
        if entry is None:
            refinement = head.refinement
            native = library.Head(
                address(head.norm),
                address(head.previous_norm),
                None if refinement is None else address(refinement.norm),
                address(head.final_norm),
                address(head.unit_norm),
                pointer(head.project.native),
                pointer(head.project_previous.native),
                None if refinement is None else pointer(refinement.gate_up.native),
                None if refinement is None else pointer(refinement.down.native),
                pointer(head.lm_head.native),
                pointer(head.other.native),
            )
            entry = self._heads[id(head)] = (head, native)
        return entry[1]

    def segment(
        self, layers: Sequence[DecoderLayer], caches: Sequence[LayerCache]
    ) -> SegmentStructure:
        """Return layers and their caches as C structures."""
        identity = (*map(id, layers), *map(id, caches))
        segment = self._segments.get(identity[0])
        if segment is None or segment.identity != identity:
            pairs = list(zip(layers, caches, strict=True))
            native = (library.Layer * len(pairs))(*(self._layer(*pair) for pair in pairs))
            is_fused = all(is_gated(layer.gate_up) for layer in layers)
            segment = SegmentStructure(native, is_fused, identity, pairs)
            self._segments[identity[0]] = segment
        return segment

    def _layer(self, layer: DecoderLayer, cache: LayerCache) -> library.Layer:
        return library.Layer(
            address(layer.input_norm),
            address(layer.mlp_norm),
            *(
                pointer(weight.native)
                for weight in (layer.qkv, layer.output, layer.gate_up, layer.down)
            ),
            pointer(self.params(layer.attention)),
            pointer(cache_structure(cache)),
        )

    def batch(self, batch: TokenBatch) -> Any:
        """Return a reference to the batch as a C structure, kept for the batch's other layers."""
        if self._batch is None or self._batch[0] is not batch:
            native = library.TokenBatch(
                address(batch.positions, torch.int32),
                address(batch.slots, torch.int32),
                address(batch.rows, torch.int32),
                address(batch.block_tables, torch.int32),
                len(batch.positions),
                batch.block_tables.shape[0],
                batch.block_tables.shape[1],
                batch.block_size,
            )
            self._batch = (batch, byref(native))
        return self._batch[1]


def is_gated(weight: NativeLinear) -> bool:
    """Whether C can compute gate and up in one go: each half is a whole number of panels."""
    return weight.out_features % (2 * PANEL) == 0


def cache_structure(cache: LayerCache) -> library.LayerCache:
    """Return a layer's cache as a C structure."""
    keys, values = cache.keys, cache.values
    return library.LayerCache(address(keys), address(values), keys.shape[0])
