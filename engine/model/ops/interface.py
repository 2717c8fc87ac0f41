"""The operations a decoder is made of, as one interface with several backends (torch, native CPU).

The decoder is defined once on top of these; a backend replaces operations, never the decoder.
Contract of every
backend: **a token's result does not depend on the other tokens of the call** — bit-identical for
any number of tokens, any batch and any chunking. Knows nothing of sequences, exits or requests.

Shapes: T tokens in the call, S rows (sequences), E hidden size, H query heads, Hkv key/value heads,
D head size, N blocks, B block size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.model.block_weight import BlockWeight
from engine.model.noise import SaltedIds


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionParams:
    """What one attention layer needs besides its activations; the same object is passed on every
    call.
    """

    num_heads: int  # H
    num_kv_heads: int  # Hkv; H is a multiple
    head_size: int  # D
    scale: float
    rope_cos: Tensor  # [max positions, D/2] float32, scaling (e.g. Llama-3) already applied
    rope_sin: (
        Tensor  # [max positions, D/2]; rotation pairs element i with i + D/2 (HF "rotate half")
    )
    norm_eps: float
    q_norm: Tensor | None = None  # [D]: per-head RMS norm of queries before the rotation (Qwen3)
    k_norm: Tensor | None = None  # [D]
    sliding_window: int | None = None  # token at p sees positions (p - window, p]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Where the tokens of one call stand. Tokens of a row may be any set of its positions, in
    ascending order.

    A token may also stand aside, in a slot that its row's table does not name: it reads the
    positions before its own from the table's blocks, and nobody but itself reads what it writes.
    """

    positions: Tensor  # [T] int32
    slots: Tensor  # [T] int32: block_id * B + offset, where this token's K and V are written
    rows: Tensor  # [T] int32: index into block_tables
    block_tables: Tensor  # [S, max blocks] int32, contiguous
    block_size: int  # B


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCache:
    """One layer's keys and values in the paged pool."""

    keys: Tensor  # [N * B, Hkv, D]
    values: Tensor  # [N * B, Hkv, D]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLayer:
    """One layer's packed weights; the same object is passed on every call."""

    input_norm: Tensor  # [E]
    qkv: Any  # [(H + 2 Hkv) D, E]
    attention: AttentionParams
    output: Any  # [E, H D]
    mlp_norm: Tensor  # [E]
    gate_up: Any  # [2 F, E]
    down: Any  # [E, F]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refinement:
    """A head's refinement, packed."""

    norm: Tensor  # [E], c
    gate_up: Any  # [2 F, E], G above V
    down: Any  # [E, F], D


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedHead:
    """One exit head's packed weights (see `engine.model.exit_head`, also for the letters); the same
    object is passed on every call.
    """

    norm: Tensor  # [E], a
    previous_norm: Tensor  # [E], b
    project: Any  # [E, E], T
    project_previous: Any  # [E, E], U
    other: Any  # [1, E], o
    refinement: Refinement | None
    unit_norm: Tensor  # [E], ones
    final_norm: Tensor  # [E], the model's
    lm_head: Any  # [V', E]: the reduced vocabulary's rows, shared by all exits


class Ops(Protocol):
    """A backend. `Linear` objects are opaque: whatever `pack` returned."""

    name: str
    device: torch.device
    dtype: torch.dtype

    def pack(
        self,
        weight: Tensor | BlockWeight,
        bias: Tensor | None = None,
        *,
        is_table: bool = False,
    ) -> Any:
        """Prepare a weight [out, in] (and bias [out]) for `linear` and `embed`. Keeps no second
        copy of it. A quantized weight multiplies with exactly the values it stands for.

        Args:
            is_table: The embedding or the LM head, never rounded to fewer than 8 bits.
        """

    def pack_head(self, weight: Tensor) -> Any:
        """`pack` for exit heads, whose weights may be rounded: they steer drafts, not output."""

    def repack_head(self, packed: Any, weight: Tensor) -> None:
        """Put another weight of the same shape into what `pack_head` returned, where it lies:
        graphs that read it need not be captured again.
        """

    def embed(self, token_ids: Tensor, table: Any) -> Tensor:
        """Rows of a packed [V, E] table: [T] int32 -> [T, E]."""

    def linear(
        self,
        x: Tensor,
        weight: Any,
        *,
        norm: Tensor | None = None,
        eps: float = 0.0,
        residual: Tensor | None = None,
    ) -> Tensor:
        """`residual + weight @ rms_norm(x, norm, eps) + bias`; norm and residual are optional.
        [T, in] -> [T, out].
        """

    def gate_up(self, x: Tensor, weight: Any, *, norm: Tensor, eps: float) -> Tensor:
        """`silu(g) * u` where [g; u] = weight @ rms_norm(x): packed weight [2F, E], gate rows
        first. [T, E] -> [T, F].
        """

    def attention(
        self, qkv: Tensor, params: AttentionParams, cache: LayerCache, batch: TokenBatch
    ) -> Tensor:
        """Normalize (if asked) and rotate q and k, write k and v at `slots`, attend causally over
        the row's blocks.

        Args:
            qkv: [T, (H + 2 Hkv) * D], queries first, then keys, then values.

        Returns:
            [T, H * D]. A token at position p attends to positions < p of its row, those of this
            call included, and to itself, wherever its slot is.
        """

    def run_layers(
        self,
        hidden: Tensor,
        layers: Sequence[DecoderLayer],
        caches: Sequence[LayerCache],
        batch: TokenBatch,
        eps: float,
    ) -> Tensor:
        """Whole layers, one cache for each: [T, E] -> [T, E], the input left as it is.

        What `layers.run_layers` composes of the operations above, which also says what a layer is;
        a backend may do the same at once.
        """

    def run_head(
        self,
        hidden: Tensor,
        previous: Tensor,
        lengths: Sequence[int],
        head: PackedHead,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """An exit head on runs of tokens, each of which reads the estimate of the one before it.

        What `heads.run_head` composes of the operations above, which also says what a head is; a
        backend may do the same at once.

        Args:
            hidden: [T, E], at the exit, run by run.
            previous: [R, E], last hidden states of the tokens before the runs, or estimates.
            lengths: Of the R runs, at least 1 each.

        Returns:
            The estimated states [T, E], their logits [T, V'] and that of "other" [T, 1], float32.
        """

    def exclude(self, logits: Tensor, allowed: Tensor, token_ids: Tensor | None = None) -> None:
        """Set the logits of tokens that some rows do not allow to -inf, in place.

        Args:
            logits: [T, V'] float32, contiguous.
            allowed: [M, 1 + W] int32: the index of a row, none of them twice, then a bit for each
                token of the vocabulary, 32 to a word, the lowest first: whether it is allowed.
            token_ids: [V'] int32 ids of the columns; None when V' is the whole vocabulary in order.
        """

    def sample(
        self,
        logits: Tensor,
        inverse_temperature: Tensor,
        keys: Tensor,
        token_ids: Tensor | None = None,
    ) -> Tensor:
        """Gumbel-argmax with counter-based noise: argmax_j(logits[i, j] * inverse_temperature[i] +
        gumbel(keys[i], id_j)).

        Args:
            logits: [T, V'] float32; -inf marks an excluded token.
            inverse_temperature: [T] float32; 0 means greedy: plain argmax of the logits, no noise.
            keys: [T] int64, see `engine.model.noise`.
            token_ids: [V'] int32 ids of the columns; None when V' is the whole vocabulary in order.

        Returns:
            [T] int64 column indices; the lowest index wins a tie. -1 for a row that holds a NaN:
            the caller turns that into an error of that row alone.
        """

    def fetch(self, values: Tensor) -> Callable[[], list[Any]]:
        """Numbers on their way to the host.

        Returns:
            What waits for them, as lists, and for nothing that was launched after this call.
        """

    def expect(
        self,
        logits: Tensor,
        other: Tensor,
        temperatures: Tensor,
        keys: Tensor | None,
        ids: SaltedIds,
        followers: Tensor,
    ) -> Tensor:
        """What a head expects of each row, with a draft's weight of the noise that `sample` adds
        (`noise.DRAFT_WEIGHT`): the best column and its share, the share of the draft that follows,
        and the second-best column and its share. Shares are those of the softmax of all scores.
        They steer drafts, not output: no bits are promised, but a row's do not depend on the
        others.

        Args:
            logits: [T, V'] float32; -inf marks an excluded token.
            other: [T, 1], the logit of column V': all tokens outside the reduced vocabulary.
            temperatures: [T] float32; 0 means greedy: logits as they are.
            keys: [T] int64, see `engine.model.noise`; None where all rows are greedy.
            ids: Of the V' columns.
            followers: [T] int64, columns up to V'.

        Returns:
            [T, 5] float64: the best column, the lowest of equals; the logarithm of its share; that
            of the follower's; the second-best column; the logarithm of its share. The shares of a
            row that holds a NaN are NaN.
        """
