"""The native CPU backend: `Ops` on hand-written C kernels (see `native/`), exact rows by design.

Activations and sums are float32; weights are kept as float32, bfloat16 or blocks of 8 or 4 bits.
Every result is one sum in one fixed order, so a token's bits do not depend on what shares its call.

A segment of layers is one call to C, and the C structures of layers and caches are built once.
Knows only `interface.py` and the C functions.
"""

from collections.abc import Callable, Sequence
from ctypes import byref, c_int32, c_int64
from typing import Any

import torch
from torch import Tensor

from engine.model.block_weight import BlockWeight
from engine.model.noise import DRAFT_WEIGHT, MEAN_GUMBEL, SaltedIds
from engine.model.ops.heads import run_head
from engine.model.ops.interface import (
    AttentionParams,
    DecoderLayer,
    LayerCache,
    PackedHead,
    TokenBatch,
)
from engine.model.ops.layers import run_layers
from engine.model.ops.native.address import address, optional_address
from engine.model.ops.native.build import BuildError
from engine.model.ops.native.library import load_library
from engine.model.ops.native.linear import Format, NativeLinear
from engine.model.ops.native.structures import Structures, cache_structure, is_gated


class NativeOps:
    """`Ops` on a CPU, in C. An instance runs one operation at a time, whichever thread calls."""

    def __init__(
        self,
        num_threads: int,
        weights: Format = Format.FLOAT32,
        heads: Format = Format.FLOAT32,
        cores: Sequence[int] = (),
        *,
        rounds_activations: bool = False,
    ) -> None:
        """Start the kernels' threads; the calling thread is one of the `num_threads`.

        Args:
            weights: The format in which float weights are kept; INT8 and INT4 round them to blocks
                of 32. Weights that are already quantized stay as they are.
            heads: The same for exit heads.
            cores: Thread i stays on cores[i]; empty: the system chooses. Thread 0, the caller's, is
                never pinned.
            rounds_activations: Multiply weights of 8 and 4 bits with activations that are rounded
                to 8 bits, block by block: quicker, but not what the weights' float values give.

        Raises:
            BuildError: if the kernels are not available (ask `unavailable_reason` first), or the
                threads cannot be started.
        """
        self.name = "native"
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.form = weights
        self.heads_form = heads
        self.rounds_activations = rounds_activations
        self._library = load_library()
        self.build = str(self._library._name)  # the file; its name holds a hash of its sources
        self._context = self._library.context_new(num_threads)
        if not self._context:
            raise BuildError(f"{num_threads} threads cannot be started")
        if cores:
            self._library.context_pin(self._context, (c_int32 * len(cores))(*cores), len(cores))
        self._structures = Structures()

    def __del__(self) -> None:
        if context := getattr(self, "_context", None):
            self._library.context_free(context)

    @staticmethod
    def unavailable_reason() -> str | None:
        """Return why the kernels cannot be used here, or None; compiles them if need be."""
        try:
            load_library()
        except BuildError as error:
            return str(error)
        return None

    def pack(
        self,
        weight: Tensor | BlockWeight,
        bias: Tensor | None = None,
        *,
        is_table: bool = False,
    ) -> NativeLinear:
        """See `Ops.pack`."""
        if isinstance(weight, BlockWeight):
            return NativeLinear.of_blocks(weight, bias, is_rounded=self.rounds_activations)
        is_too_coarse = is_table and self.form is Format.INT4
        form = Format.INT8 if is_too_coarse else self.form
        return NativeLinear.of_floats(weight, bias, form, is_rounded=self.rounds_activations)

    def pack_head(self, weight: Tensor) -> NativeLinear:
        """See `Ops.pack_head`."""
        # No output depends on a head's last digits, so what codes are multiplied with is rounded.
        return NativeLinear.of_floats(weight, None, self.heads_form, is_rounded=True)

    def repack_head(self, packed: NativeLinear, weight: Tensor) -> None:
        """See `Ops.repack_head`."""
        packed.rewrite(weight)

    def embed(self, token_ids: Tensor, table: NativeLinear) -> Tensor:
        """See `Ops.embed`."""
        out = torch.empty(len(token_ids), table.in_features)
        ids = address(token_ids, torch.int32)
        _check(self._library.linear_embed(table.reference, ids, len(token_ids), out.data_ptr()))
        return out

    def linear(
        self,
        x: Tensor,
        weight: NativeLinear,
        *,
        norm: Tensor | None = None,
        eps: float = 0.0,
        residual: Tensor | None = None,
    ) -> Tensor:
        """See `Ops.linear`."""
        x = x.contiguous()
        assert x.shape[1] == weight.in_features, "linear: x does not fit the weight"
        if residual is not None:
            residual = residual.contiguous()
        out = torch.empty(x.shape[0], weight.out_features)
        status = self._library.linear_forward(
            self._context,
            weight.reference,
            address(x),
            x.shape[0],
            optional_address(norm),
            eps,
            optional_address(residual),
            out.data_ptr(),
        )
        _check(status)
        return out

    def gate_up(self, x: Tensor, weight: NativeLinear, *, norm: Tensor, eps: float) -> Tensor:
        """See `Ops.gate_up`."""
        if not is_gated(weight):
            gate, up = self.linear(x, weight, norm=norm, eps=eps).chunk(2, dim=-1)
            return gate / (1 + torch.exp(-gate)) * up
        x = x.contiguous()
        assert x.shape[1] == weight.in_features, "gate_up: x does not fit the weight"
        out = torch.empty(x.shape[0], weight.out_features // 2)
        status = self._library.linear_gate_up(
            self._context,
            weight.reference,
            address(x),
            x.shape[0],
            address(norm),
            eps,
            out.data_ptr(),
        )
        _check(status)
        return out

    def attention(
        self, qkv: Tensor, params: AttentionParams, cache: LayerCache, batch: TokenBatch
    ) -> Tensor:
        """See `Ops.attention`."""
        out = torch.empty(qkv.shape[0], params.num_heads * params.head_size)
        assert qkv.shape[0] == len(batch.positions), "attention: one position per token"
        status = self._library.attention_forward(
            self._context,
            byref(self._structures.params(params)),
            self._structures.batch(batch),
            byref(cache_structure(cache)),
            address(qkv),
            out.data_ptr(),
        )
        _check(status)
        return out

    def run_layers(
        self,
        hidden: Tensor,
        layers: Sequence[DecoderLayer],
        caches: Sequence[LayerCache],
        batch: TokenBatch,
        eps: float,
    ) -> Tensor:
        """See `Ops.run_layers`."""
        segment = self._structures.segment(layers, caches)
        if not segment.is_fused:
            return run_layers(self, hidden, layers, caches, batch, eps)
        hidden = hidden.contiguous()
        assert len(hidden) == len(batch.positions), "run_layers: one position per token"
        assert hidden.shape[1] == layers[0].qkv.in_features, "run_layers: hidden does not fit"
        out = torch.empty_like(hidden)
        status = self._library.layers_forward(
            self._context,
            segment.native,
            len(layers),
            self._structures.batch(batch),
            eps,
            address(hidden),
            out.data_ptr(),
        )
        _check(status)
        return out

    def run_head(
        self,
        hidden: Tensor,
        previous: Tensor,
        lengths: Sequence[int],
        head: PackedHead,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Ops.run_head`."""
        if head.refinement is not None and not is_gated(head.refinement.gate_up):
            return run_head(self, hidden, previous, lengths, head, eps)
        hidden, previous = hidden.contiguous(), previous.contiguous()
        count, size = hidden.shape
        assert count == sum(lengths), "run_head: one hidden state per token"
        assert previous.shape == (len(lengths), size), "run_head: one previous state per run"
        states = torch.empty(count, size)
        logits = torch.empty(count, head.lm_head.out_features)
        other = torch.empty(count, 1)
        status = self._library.head_forward(
            self._context,
            byref(self._structures.head(head)),
            address(hidden),
            count,
            address(previous),
            (c_int64 * len(lengths))(*lengths),
            len(lengths),
            eps,
            states.data_ptr(),
            logits.data_ptr(),
            other.data_ptr(),
        )
        _check(status)
        return states, logits, other

    def exclude(self, logits: Tensor, allowed: Tensor, token_ids: Tensor | None = None) -> None:
        """See `Ops.exclude`."""
        status = self._library.exclude_forward(
            self._context,
            address(logits),
            logits.shape[0],
            logits.shape[1],
            address(allowed, torch.int32),
            allowed.shape[0],
            allowed.shape[1] - 1,
            optional_address(token_ids, torch.int32),
        )
        _check(status)

    def sample(
        self,
        logits: Tensor,
        inverse_temperature: Tensor,
        keys: Tensor,
        token_ids: Tensor | None = None,
    ) -> Tensor:
        """See `Ops.sample`."""
        logits = logits.contiguous()
        chosen = torch.empty(logits.shape[0], dtype=torch.int64)
        status = self._library.sample_forward(
            self._context,
            address(logits),
            logits.shape[0],
            logits.shape[1],
            logits.stride(0),
            address(inverse_temperature),
            address(keys, torch.int64),
            optional_address(token_ids, torch.int32),
            chosen.data_ptr(),
        )
        _check(status)
        return chosen

    def fetch(self, values: Tensor) -> Callable[[], list[Any]]:
        """See `Ops.fetch`."""
        return values.tolist

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
        logits, other = logits.contiguous(), other.contiguous()
        out = torch.empty(len(logits), 5, dtype=torch.float64)
        status = self._library.expect_forward(
            self._context,
            address(logits),
            address(other),
            logits.shape[0],
            logits.shape[1],
            address(temperatures),
            optional_address(keys, torch.int64),
            address(ids.salts, torch.int64),
            address(followers, torch.int64),
            DRAFT_WEIGHT,
            DRAFT_WEIGHT * MEAN_GUMBEL,
            out.data_ptr(),
        )
        _check(status)
        return out


def _check(status: int) -> None:
    """Raise the error of a kernel's status; the values are those of context.h."""
    if status == 1:
        raise MemoryError("native kernels: out of memory")
    assert status == 0, "native kernels: a token id, position, slot or row is out of range"
