"""The plain torch backend: the reference every other backend is tested against, and the fallback on
any device.

Rows are exact on the CPU: linears go through oneDNN with weights reordered once, whose results are
the same for any number of rows but one (so one row is padded to two); attention runs token by
token, so that every shape depends on the token's own position alone. Knows only `interface.py`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.model.block_weight import BlockWeight
from engine.model.noise import gumbel
from engine.model.ops.expectation import expect
from engine.model.ops.heads import run_head
from engine.model.ops.interface import (
    AttentionParams,
    DecoderLayer,
    LayerCache,
    PackedHead,
    TokenBatch,
)
from engine.model.ops.layers import run_layers


class TorchLinear:
    """A weight [out, in] and bias [out] ready for `TorchOps.linear`."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.bias = bias
        self.prepacked = _prepack(weight) if weight.device.type == "cpu" else None

    def fill(self, weight: Tensor) -> None:
        """Replace the weight by another of the same shape."""
        if self.prepacked is None:
            self.weight.copy_(weight)
        else:
            self.weight = weight.to(self.weight)
            self.prepacked = _prepack(self.weight)

    def __call__(self, x: Tensor) -> Tensor:
        if self.prepacked is None:
            return F.linear(x, self.weight, self.bias)
        # oneDNN takes another path for a single row: pad it to two, so that bits do not depend on
        # the number of rows.
        rows = torch.cat((x, x)) if x.shape[0] == 1 else x
        out = torch.ops.mkldnn._linear_pointwise(rows, self.prepacked, self.bias, "none", [], "")
        return out[: x.shape[0]]


def _prepack(weight: Tensor) -> Tensor | None:
    if not torch.backends.mkldnn.is_available():
        return None
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return `weight * x / rms(x)` over the last dimension; x / rms(x) is computed in float32."""
    x32 = x.float()
    normalized = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normalized.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [T, heads, D] by cos and sin [T, D/2], pairing element i with i + D/2."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class TorchOps:
    """`Ops` in plain torch."""

    def __init__(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.name = "torch"
        self.device = torch.device(device)
        self.dtype = dtype

    def pack(
        self,
        weight: Tensor | BlockWeight,
        bias: Tensor | None = None,
        *,
        is_table: bool = False,
    ) -> TorchLinear:
        """See `Ops.pack`; blocks are expanded."""
        values = weight.dequantize() if isinstance(weight, BlockWeight) else weight
        values = values.to(self.device, self.dtype)
        return TorchLinear(values, None if bias is None else bias.to(self.device, self.dtype))

    def pack_head(self, weight: Tensor) -> TorchLinear:
        """See `Ops.pack_head`."""
        return self.pack(weight)

    def repack_head(self, packed: TorchLinear, weight: Tensor) -> None:
        """See `Ops.repack_head`."""
        packed.fill(weight)

    def embed(self, token_ids: Tensor, table: TorchLinear) -> Tensor:
        """See `Ops.embed`."""
        return F.embedding(token_ids.long(), table.weight)

    def linear(
        self,
        x: Tensor,
        weight: TorchLinear,
        *,
        norm: Tensor | None = None,
        eps: float = 0.0,
        residual: Tensor | None = None,
    ) -> Tensor:
        """See `Ops.linear`."""
        out = weight(x if norm is None else rms_norm(x, norm, eps))
        return out if residual is None else residual + out

    def gate_up(self, x: Tensor, weight: TorchLinear, *, norm: Tensor, eps: float) -> Tensor:
        """See `Ops.gate_up`."""
        gate, up = weight(rms_norm(x, norm, eps)).chunk(2, dim=-1)
        return F.silu(gate) * up

    def attention(
        self, qkv: Tensor, params: AttentionParams, cache: LayerCache, batch: TokenBatch
    ) -> Tensor:
        """See `Ops.attention`."""
        query, key, value = _split_heads(qkv, params)
        positions = batch.positions.long()
        cos, sin = params.rope_cos[positions], params.rope_sin[positions]
        slots = batch.slots.long()
        cache.keys[slots] = rotate(key, cos, sin)
        cache.values[slots] = value
        query = rotate(query, cos, sin)
        heads = [
            _attend(query[token], position, slot, batch.block_tables[row], params, cache, batch)
            for token, (position, slot, row) in enumerate(
                torch.stack((batch.positions, batch.slots, batch.rows), dim=1).tolist()
            )
        ]
        return torch.stack(heads).to(qkv.dtype)

    def run_layers(
        self,
        hidden: Tensor,
        layers: Sequence[DecoderLayer],
        caches: Sequence[LayerCache],
        batch: TokenBatch,
        eps: float,
    ) -> Tensor:
        """See `Ops.run_layers`."""
        return run_layers(self, hidden, layers, caches, batch, eps)

    def run_head(
        self,
        hidden: Tensor,
        previous: Tensor,
        lengths: Sequence[int],
        head: PackedHead,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Ops.run_head`."""
        return run_head(self, hidden, previous, lengths, head, eps)

    def exclude(self, logits: Tensor, allowed: Tensor, token_ids: Tensor | None = None) -> None:
        """See `Ops.exclude`."""
        if token_ids is None:
            token_ids = torch.arange(logits.shape[1], dtype=torch.int32, device=logits.device)
        rows, words = allowed[:, 0].long(), allowed[:, 1:]
        is_allowed = words[:, token_ids.long() >> 5] >> (token_ids & 31) & 1
        logits[rows] = logits[rows].masked_fill(is_allowed == 0, float("-inf"))

    def sample(
        self,
        logits: Tensor,
        inverse_temperature: Tensor,
        keys: Tensor,
        token_ids: Tensor | None = None,
    ) -> Tensor:
        """See `Ops.sample`."""
        choices = [
            _sample_row(row, float(scale), key, token_ids)
            for row, scale, key in zip(logits, inverse_temperature.tolist(), keys, strict=True)
        ]
        return torch.stack(choices) if choices else torch.empty(0, dtype=torch.int64)

    def fetch(self, values: Tensor) -> Callable[[], list[Any]]:
        """See `Ops.fetch`."""
        return values.tolist

    expect = staticmethod(expect)


def _split_heads(qkv: Tensor, params: AttentionParams) -> tuple[Tensor, Tensor, Tensor]:
    """Split [T, (H + 2 Hkv) D] into q [T, H, D], k and v [T, Hkv, D]; normalize q and k if the
    model does.
    """
    heads = qkv.view(qkv.shape[0], params.num_heads + 2 * params.num_kv_heads, params.head_size)
    query, key, value = heads.split(
        (params.num_heads, params.num_kv_heads, params.num_kv_heads), dim=1
    )
    if params.q_norm is not None:
        query = rms_norm(query, params.q_norm, params.norm_eps)
    if params.k_norm is not None:
        key = rms_norm(key, params.k_norm, params.norm_eps)
    return query, key, value


def _attend(
    query: Tensor,
    position: int,
    slot: int,
    block_table: Tensor,
    params: AttentionParams,
    cache: LayerCache,
    batch: TokenBatch,
) -> Tensor:
    """Return the attention [H * D] of one token's query [H, D] over the positions it sees.

    Args:
        slot: The token's own slot, which the block table may not name.
    """
    start = 0 if params.sliding_window is None else max(0, position + 1 - params.sliding_window)
    seen = torch.arange(start, position + 1, device=query.device)
    slots = (
        block_table.long()[seen // batch.block_size] * batch.block_size + seen % batch.block_size
    )
    slots[-1] = slot
    keys = cache.keys[slots].float().transpose(0, 1)  # [Hkv, positions, D]
    values = cache.values[slots].float().transpose(0, 1)
    grouped = query.float().view(params.num_kv_heads, -1, params.head_size)
    scores = (grouped @ keys.transpose(1, 2)) * params.scale
    return (scores.softmax(-1) @ values).reshape(-1)


def _sample_row(logits: Tensor, scale: float, key: Tensor, token_ids: Tensor | None) -> Tensor:
    if torch.isnan(logits).any():
        return torch.tensor(-1, device=logits.device)
    if scale == 0.0:
        return logits.argmax()
    ids = token_ids if token_ids is not None else torch.arange(len(logits), device=logits.device)
    return (logits * scale + gumbel(key[None], ids)[0]).argmax()
