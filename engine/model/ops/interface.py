"""The operations a decoder is made of, as one interface with several backends: plain torch, native
CPU and CUDA.

The decoder is defined once on top of these; a backend replaces operations, never the decoder. Every
backend promises that **a token's result does not depend on the other tokens of the call**: it is
bit-identical for any number of tokens, any batch and any chunking. Knows nothing of sequences,
policies or requests.

Shapes: T tokens in the call, S rows (sequences), E hidden size, F inner size of an MLP, H query
heads, Hkv key/value heads, D head size, V vocabulary, V' reduced vocabulary, N blocks, B block
size.
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
    """The parameters of one layer's attention; the same object is passed on every call."""

    num_heads: int  # H
    num_kv_heads: int  # Hkv; H is a multiple of it
    head_size: int  # D
    scale: float
    rope_cos: Tensor  # [max positions, D/2] float32, scaling (e.g. Llama-3) already applied
    # Rotation pairs element i with i + D/2 (Hugging Face's "rotate half").
    rope_sin: Tensor  # [max positions, D/2] float32
    norm_eps: float
    q_norm: Tensor | None = None  # [D]: per-head RMS norm of queries before the rotation (Qwen3)
    k_norm: Tensor | None = None  # [D], likewise of keys
    sliding_window: int | None = None  # the token at p sees positions (p - window, p]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """The rows, positions and slots of the tokens of one call.

    The tokens of a row may be any set of its positions, in ascending order. A token may also stand
    aside, in a slot that its row's block table does not name: it reads the positions before its own
    from the table's blocks, and only the token itself reads what it writes.
    """

    positions: Tensor  # [T] int32
    slots: Tensor  # [T] int32: block_id * B + offset, where this token's K and V are written
    rows: Tensor  # [T] int32: index into block_tables
    block_tables: Tensor  # [S, max blocks] int32, contiguous
    block_size: int  # B


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCache:
    """One layer's keys and values in the KV pool."""

    keys: Tensor  # [N * B, Hkv, D]
    values: Tensor  # [N * B, Hkv, D]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLayer:
    """The packed weights of one layer; the same object is passed on every call."""

    input_norm: Tensor  # [E]
    qkv: Any  # [(H + 2 Hkv) D, E]
    attention: AttentionParams
    output: Any  # [E, H D]
    mlp_norm: Tensor  # [E]
    gate_up: Any  # [2 F, E]
    down: Any  # [E, F]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refinement:
    """The packed weights of an exit head's refinement; letters as in `engine.model.exit_head`."""

    norm: Tensor  # [E], c
    gate_up: Any  # [2 F, E], G above V
    down: Any  # [E, F], D


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedHead:
    """The packed weights of one exit head; the same object is passed on every call.

    The letters are those of `engine.model.exit_head`, which says how a head computes.
    """

    norm: Tensor  # [E], a
    previous_norm: Tensor  # [E], b
    project: Any  # [E, E], T
    project_previous: Any  # [E, E], U
    other: Any  # [1, E], o
    refinement: Refinement | None
    unit_norm: Tensor  # [E], ones
    final_norm: Tensor  # [E], that of the model
    lm_head: Any  # [V', E]: the reduced vocabulary's rows, shared by all exits


class Ops(Protocol):
    """A backend. Packed weights are opaque: only the backend that packed them can read them."""

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
        """Prepare a weight [out, in] (and bias [out]) for `linear`, `gate_up` and `embed`.

        A quantized weight counts as exactly the values that its codes stand for, rounded at most to
        the backend's `dtype`. Only plain torch on a CPU keeps a second copy of a weight.

        Args:
            is_table: The weight is the embedding or the LM head, and a backend that rounds weights
                keeps at least 8 bits of it.
        """

    def pack_head(self, weight: Tensor) -> Any:
        """Prepare an exit head's weight; it may be rounded: it affects drafts, never output."""

    def repack_head(self, packed: Any, weight: Tensor) -> None:
        """Replace a weight that `pack_head` returned by another of the same shape.

        On a GPU it stays where it is in memory, so graphs that read it need not be captured again.
        """

    def embed(self, token_ids: Tensor, table: Any) -> Tensor:
        """Return rows [T, E] of a packed table [V, E] for token ids [T] int32."""

    def linear(
        self,
        x: Tensor,
        weight: Any,
        *,
        norm: Tensor | None = None,
        eps: float = 0.0,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Compute `residual + weight @ rms_norm(x, norm, eps) + bias`: [T, in] -> [T, out].

        Norm and residual are optional.
        """

    def gate_up(self, x: Tensor, weight: Any, *, norm: Tensor, eps: float) -> Tensor:
        """Compute `silu(g) * u` where [g; u] = weight @ rms_norm(x) + bias: [T, E] -> [T, F].

        The weight [2 F, E] has the rows of the gate first.
        """

    def attention(
        self, qkv: Tensor, params: AttentionParams, cache: LayerCache, batch: TokenBatch
    ) -> Tensor:
        """Attend causally over the rows' blocks.

        Normalizes q and k if the layer has norms for them, rotates them, and writes k and v at the
        batch's slots.

        Args:
            qkv: [T, (H + 2 Hkv) * D], queries first, then keys, then values.

        Returns:
            [T, H * D]. A token at position p attends to positions < p of its row (within the
            sliding window), those of this call included, and to itself, wherever its slot is.
        """

    def run_layers(
        self,
        hidden: Tensor,
        layers: Sequence[DecoderLayer],
        caches: Sequence[LayerCache],
        batch: TokenBatch,
        eps: float,
    ) -> Tensor:
        """Run whole layers, each with its own cache: [T, E] -> [T, E]; the input is not changed.

        `layers.run_layers` defines a layer in terms of the operations above; a backend may compute
        the same in one call.
        """

    def run_head(
        self,
        hidden: Tensor,
        previous: Tensor,
        lengths: Sequence[int],
        head: PackedHead,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate an exit head on R runs of successive tokens.

        Each token after the first of a run reads the estimate of the one before it.
        `heads.run_head` defines a head in terms of the operations above; a backend may compute the
        same in one call.

        Args:
            hidden: [T, E], the hidden states at the exit, run by run.
            previous: [R, E], last hidden states of the tokens before the runs, or estimates.
            lengths: Numbers of tokens of the R runs, at least 1 each.

        Returns:
            The estimated last hidden states [T, E], their logits [T, V'] float32, and the logits
            [T, 1] float32 of "other".
        """

    def exclude(self, logits: Tensor, allowed: Tensor, token_ids: Tensor | None = None) -> None:
        """Set the logits of tokens that are not allowed to -inf, in place, in M of the T rows.

        Args:
            logits: [T, V'] float32, contiguous.
            allowed: [M, 1 + W] int32. Each entry is the index of a row of the logits, none of them
                twice, and then W words of bits, one for each token of the vocabulary, lowest bit
                first, 32 per word: 1 if the token is allowed.
            token_ids: [V'] int32 ids of the columns; None when V' is the whole vocabulary in order.
        """

    def sample(
        self,
        logits: Tensor,
        inverse_temperature: Tensor,
        keys: Tensor,
        token_ids: Tensor | None = None,
    ) -> Tensor:
        """Choose a column per row by Gumbel-argmax with counter-based noise.

        The choice of row i is argmax_j(logits[i, j] * inverse_temperature[i] +
        gumbel(keys[i], id_j)).

        Args:
            logits: [T, V'] float32; -inf marks an excluded token.
            inverse_temperature: [T] float32; 0 means greedy: argmax of the logits, without noise.
            keys: [T] int64, see `engine.model.noise`; not used by greedy rows.
            token_ids: [V'] int32 ids of the columns; None when V' is the whole vocabulary in order.

        Returns:
            [T] int64 column indices; the lowest index wins a tie. -1 for a row that holds a NaN,
            which the caller turns into an error of that row alone.
        """

    def fetch(self, values: Tensor) -> Callable[[], list[Any]]:
        """Start copying values to the host.

        Returns:
            A function that returns the values as (nested) lists. It waits for the copy, and not for
            anything launched after this call.
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
        """Find which tokens an exit head expects at each row, and how confidently.

        Scores are logits over temperature plus the noise of `sample`, weighted by
        `noise.DRAFT_WEIGHT`. A column's share is its softmax over the V' + 1 scores of the row.
        Shares affect drafts, never output: backends may differ in their last bits, but a row's bits
        do not depend on the other rows.

        Args:
            logits: [T, V'] float32; -inf marks an excluded token.
            other: [T, 1], the logit of column V', which stands for all tokens outside the reduced
                vocabulary.
            temperatures: [T] float32; 0 means greedy: the scores are the logits, without noise.
            keys: [T] int64, see `engine.model.noise`; None if all rows are greedy.
            ids: Token ids of the V' columns.
            followers: [T] int64, columns (up to and including V') whose shares are wanted too: each
                is that of the draft which follows the row's token.

        Returns:
            [T, 5] float64: the best column (the lowest of equals), the logarithm of its share, the
            logarithm of the follower's share, the second-best column, and the logarithm of its
            share. The shares of a row that holds a NaN are NaN.
        """
