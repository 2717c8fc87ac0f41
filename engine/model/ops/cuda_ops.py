"""The CUDA backend: `Ops` on Triton kernels of our own (see `cuda/`), exact rows by design.

Weights and activations are bfloat16, float16 or float32; sums are float32, and logits stay float32.
Every operation but `fetch` is safe to capture in a CUDA graph: nothing is read back. Exact rows can
be given up for cuBLAS's linears, whose bits depend on how many tokens share the call: for
comparison, or where bits do not matter. Knows only `interface.py` and the kernels; for tests it
runs on a CPU in Triton's interpreter.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.model.block_weight import BlockWeight
from engine.model.noise import SaltedIds
from engine.model.ops.cuda.tiles import Tile, TileTable
from engine.model.ops.heads import run_head
from engine.model.ops.interface import (
    AttentionParams,
    DecoderLayer,
    LayerCache,
    PackedHead,
    TokenBatch,
)
from engine.model.ops.layers import run_layers


class CudaLinear:
    """A weight [out, in] and bias [out] on the device."""

    def __init__(self, weight: Tensor, bias: Tensor | None, out_dtype: torch.dtype) -> None:
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.bias = bias
        self.out_dtype = out_dtype


class CudaOps:
    """`Ops` on one GPU."""

    def __init__(
        self,
        dtype: torch.dtype,
        *,
        exact: bool = True,
        device: torch.device | str = "cuda",
    ) -> None:
        """
        Args:
            exact: Use linears whose rows keep their bits whatever shares the call, not cuBLAS's.
        """
        # Imported here, so that a machine without Triton can import this module.
        from engine.model.ops.cuda import (
            attention_kernels,
            expect_kernel,
            linear_kernel,
            norm_kernel,
            sample_kernels,
        )

        self.name = "cuda"
        self.device = torch.device(device)
        self.dtype = dtype
        self.is_exact = exact
        is_gpu = self.device.type == "cuda" and torch.cuda.is_available()
        self.tiles = (
            TileTable.read(torch.cuda.get_device_name(self.device)) if is_gpu else TileTable()
        )
        self._attention: Any = attention_kernels
        self._expect: Any = expect_kernel
        self._linear: Any = linear_kernel
        self._norm: Any = norm_kernel
        self._sample: Any = sample_kernels

    @staticmethod
    def unavailable_reason() -> str | None:
        """Return why the kernels cannot be used here, or None. Does not look for a GPU."""
        return None if find_spec("triton") else "the package triton is not installed"

    def pack(
        self,
        weight: Tensor | BlockWeight,
        bias: Tensor | None = None,
        *,
        is_table: bool = False,
    ) -> CudaLinear:
        """See `Ops.pack`; blocks are expanded, and products of a table (logits) stay float32."""
        values = weight.dequantize() if isinstance(weight, BlockWeight) else weight
        return CudaLinear(
            values.to(self.device, self.dtype).contiguous(),
            None if bias is None else bias.to(self.device, self.dtype).contiguous(),
            torch.float32 if is_table else self.dtype,
        )

    def pack_head(self, weight: Tensor) -> CudaLinear:
        """See `Ops.pack_head`."""
        return self.pack(weight)

    def repack_head(self, packed: CudaLinear, weight: Tensor) -> None:
        """See `Ops.repack_head`."""
        packed.weight.copy_(weight)

    def embed(self, token_ids: Tensor, table: CudaLinear) -> Tensor:
        """See `Ops.embed`."""
        return F.embedding(token_ids, table.weight)

    def linear(
        self,
        x: Tensor,
        weight: CudaLinear,
        *,
        norm: Tensor | None = None,
        eps: float = 0.0,
        residual: Tensor | None = None,
    ) -> Tensor:
        """See `Ops.linear`."""
        if norm is not None:
            x = self._norm.rms_norm(x, norm, eps, overlaps=self.tiles.overlaps)
        if self.is_exact:
            return self._linear.linear(
                x,
                weight.weight,
                weight.bias,
                residual,
                self._tile(weight, len(x)),
                out_dtype=weight.out_dtype,
                overlaps=self.tiles.overlaps,
            )
        out = F.linear(x, weight.weight, weight.bias).to(weight.out_dtype)
        return out if residual is None else residual + out

    def gate_up(self, x: Tensor, weight: CudaLinear, *, norm: Tensor, eps: float) -> Tensor:
        """See `Ops.gate_up`."""
        x = self._norm.rms_norm(x, norm, eps, overlaps=self.tiles.overlaps)
        if self.is_exact:
            return self._linear.linear(
                x,
                weight.weight,
                weight.bias,
                None,
                self._tile(weight, len(x)),
                is_gated=True,
                overlaps=self.tiles.overlaps,
            )
        gate, up = F.linear(x, weight.weight, weight.bias).chunk(2, dim=-1)
        return F.silu(gate) * up

    def attention(
        self, qkv: Tensor, params: AttentionParams, cache: LayerCache, batch: TokenBatch
    ) -> Tensor:
        """See `Ops.attention`."""
        overlaps = self.tiles.overlaps
        query = self._attention.rotate_and_write(qkv, params, cache, batch, overlaps=overlaps)
        return self._attention.attend(query, params, cache, batch, overlaps=overlaps)

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
        self._sample.exclude(logits, allowed, token_ids)

    def sample(
        self,
        logits: Tensor,
        inverse_temperature: Tensor,
        keys: Tensor,
        token_ids: Tensor | None = None,
    ) -> Tensor:
        """See `Ops.sample`."""
        return self._sample.sample(logits, inverse_temperature, keys, token_ids)

    def fetch(self, values: Tensor) -> Callable[[], list[Any]]:
        """See `Ops.fetch`."""
        if not values.is_cuda:  # in the interpreter
            return values.tolist
        here = values.to("cpu", non_blocking=True)  # to pinned memory
        arrived = torch.cuda.Event()
        arrived.record()

        def read() -> list[Any]:
            arrived.synchronize()
            return here.tolist()

        return read

    def expect(
        self,
        logits: Tensor,
        other: Tensor,
        temperatures: Tensor,
        keys: Tensor | None,
        ids: SaltedIds,
        followers: Tensor,
    ) -> Tensor:
        """See `Ops.expect`."""
        return self._expect.expect(logits, other, temperatures, keys, ids, followers)

    def _tile(self, weight: CudaLinear, num_tokens: int) -> Tile:
        shape = (weight.out_features, weight.in_features)
        return self.tiles.tiles(shape).for_tokens(num_tokens)
