"""Attention over the blocks of the KV pool on CUDA, in place, for any tokens of any rows.

Three kernels: rotate and write, attend to one chunk of the past, combine the chunks. A token's
position decides the size of its chunks, every chunk begins at a multiple of that size, and the
chunks are combined in one order. So a token's result depends on its own position alone, whether it
is a single query token or part of a prefill chunk. A past of 1 k positions keeps 16 programs per
key head busy, whatever context length a model is loaded for. Knows tensors only.

Why not torch's `varlen_attn`, which takes a block table and a number of splits (torch 2.13; as
first written, pytorch #175924, block tables needed FlashAttention 3, which torch does not include):
- FlashAttention 2, which torch includes, needs blocks of a multiple of 256 positions, where ours
  have 16; and it cannot combine rows of different lengths, block tables and splits in one call
  (flash-attention #1217);
- left to itself, it chooses the splits by the longest past of the call. With one split a row's bits
  do not depend on the other rows, but then one program per key head reads the whole past: 8 of an
  H100's 132 processors for a Llama 8B;
- it would do for prefill chunks alone, but then a prompt's states would not be rounded as they are
  when its tokens are decoded, or computed again after a preemption or a prefix cache hit; all of
  these must agree.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.model.ops.cuda.overlap import options, wait
from engine.model.ops.interface import AttentionParams, LayerCache, TokenBatch

_TILE = 64  # positions of a chunk that are read at a time
_MOST_CHUNKS = 64  # that a token's past is cut into
_COMBINED = 16  # chunks that are combined at a time
_GROUP_ROWS = 16  # fewest rows of a tensor-core tile
_WORKSPACE_BYTES = 128 * 2**20  # for partial results; a call that needs more is done in slabs


def num_chunks_for(num_positions: int) -> int:
    """Return the most chunks that a token at any of the first positions has."""
    return min(_MOST_CHUNKS, -(-num_positions // _TILE))


@triton.jit
def _chunk_size(position, TILE: tl.constexpr, MOST: tl.constexpr):
    """Return the positions per chunk: one tile, doubled until MOST chunks cover the past."""
    size = position * 0 + TILE
    while size * MOST <= position:
        size = size * 2
    return size


@triton.jit
def _head(source, norm, eps, low, mask, SIZE: tl.constexpr, HAS_NORM: tl.constexpr):
    """Load the two halves of a head in float32, normalized if the model does so."""
    half = SIZE // 2
    kind = source.dtype.element_ty
    first = tl.load(source + low, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(source + half + low, mask=mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        squares = tl.sum(first * first + second * second, axis=0)
        scale = tl.rsqrt(squares / SIZE + eps)
        first_gain = tl.load(norm + low, mask=mask, other=0.0).to(tl.float32)
        second_gain = tl.load(norm + half + low, mask=mask, other=0.0).to(tl.float32)
        first = ((first * scale).to(kind).to(tl.float32) * first_gain).to(kind).to(tl.float32)
        second = ((second * scale).to(kind).to(tl.float32) * second_gain).to(kind).to(tl.float32)
    return first, second


# One binary for any batch: slices may be aligned or not, and compiling takes seconds.
@triton.jit(do_not_specialize_on_alignment=["positions", "slots"])
def _rotate_and_write_kernel(
    qkv,  # [T, (H + 2 Hkv) D]
    query,  # [T, H, D], written
    keys,  # [N B, Hkv, D], written at slots
    values,
    positions,
    slots,
    cos,  # [max positions, D / 2]
    sin,
    q_norm,
    k_norm,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,  # D / 2, rounded up to a power of two
    HAS_Q_NORM: tl.constexpr,
    HAS_K_NORM: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    if OVERLAPS:
        wait()
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    half: tl.constexpr = SIZE // 2
    low = tl.arange(0, HALF)
    mask = low < half
    source = qkv + (token * (HEADS + 2 * KV_HEADS) + head) * SIZE
    slot = tl.load(slots + token).to(tl.int64)
    if head >= HEADS + KV_HEADS:
        target = values + (slot * KV_HEADS + head - HEADS - KV_HEADS) * SIZE
        tl.store(target + low, tl.load(source + low, mask=mask), mask=mask)
        tl.store(target + half + low, tl.load(source + half + low, mask=mask), mask=mask)
    else:
        turn = tl.load(positions + token).to(tl.int64) * half + low
        cosine = tl.load(cos + turn, mask=mask, other=0.0)
        sine = tl.load(sin + turn, mask=mask, other=0.0)
        if head < HEADS:
            first, second = _head(source, q_norm, eps, low, mask, SIZE, HAS_Q_NORM)
            target = query + (token * HEADS + head) * SIZE
        else:
            first, second = _head(source, k_norm, eps, low, mask, SIZE, HAS_K_NORM)
            target = keys + (slot * KV_HEADS + head - HEADS) * SIZE
        kind = query.dtype.element_ty
        tl.store(target + low, (first * cosine - second * sine).to(kind), mask=mask)
        tl.store(target + half + low, (second * cosine + first * sine).to(kind), mask=mask)


@triton.jit(
    do_not_specialize=["table_stride", "num_chunks"],
    do_not_specialize_on_alignment=[
        "positions",
        "slots",
        "rows",
        "block_tables",
        "part_max",
        "part_sum",
    ],
)
def _attend_kernel(
    query,  # [T, H, D]
    keys,  # [N B, Hkv, D]
    values,
    positions,
    slots,
    rows,
    block_tables,
    part_values,  # [T, H, C, D] float32, written
    part_max,  # [T, H, C] float32, written
    part_sum,
    table_stride,
    num_chunks,  # C
    scale,
    window,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,  # D rounded up to a power of two
    GROUP: tl.constexpr,  # query heads per key head
    ROWS: tl.constexpr,  # the same, rounded up to a tile's rows
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    MOST_CHUNKS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    if OVERLAPS:
        wait()
    token = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    chunk = tl.program_id(2)
    position = tl.load(positions + token)
    own_slot = tl.load(slots + token).to(tl.int64)
    row = tl.load(rows + token).to(tl.int64)
    size = _chunk_size(position, TILE, MOST_CHUNKS)
    first = chunk * size
    seen_from = 0
    if HAS_WINDOW:
        seen_from = tl.maximum(0, position + 1 - window)
    end = tl.minimum(first + size, position + 1)
    begin = tl.maximum(first, seen_from // TILE * TILE)
    if begin < end:
        lanes = tl.arange(0, ROWS)
        columns = tl.arange(0, PADDED)
        is_head = lanes < GROUP
        is_column = columns < SIZE
        heads = token * HEADS + kv_head * GROUP + lanes
        query_at = query + heads[:, None] * SIZE + columns[None, :]
        mine = tl.load(query_at, mask=is_head[:, None] & is_column[None, :], other=0.0)
        table = block_tables + row * table_stride
        greatest = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
        total = tl.zeros((ROWS,), dtype=tl.float32)
        gathered = tl.zeros((ROWS, PADDED), dtype=tl.float32)
        for start in range(begin, end, TILE):
            past = start + tl.arange(0, TILE)
            is_seen = (past <= position) & (past >= seen_from)
            block = tl.load(table + past // BLOCK, mask=is_seen, other=0)
            slot = block.to(tl.int64) * BLOCK + past % BLOCK
            slot = tl.where(past == position, own_slot, slot)  # the token may stand aside
            at = (slot[:, None] * KV_HEADS + kv_head) * SIZE + columns[None, :]
            mask = is_seen[:, None] & is_column[None, :]
            key = tl.load(keys + at, mask=mask, other=0.0)
            scores = tl.dot(mine, tl.trans(key), input_precision=PRECISION) * scale
            scores = tl.where(is_seen[None, :], scores, float("-inf"))
            greater = tl.maximum(greatest, tl.max(scores, axis=1))
            weights = tl.exp(scores - greater[:, None])
            shrink = tl.exp(greatest - greater)
            total = total * shrink + tl.sum(weights, axis=1)
            value = tl.load(values + at, mask=mask, other=0.0)
            gathered = tl.dot(
                weights.to(value.dtype),
                value,
                gathered * shrink[:, None],
                input_precision=PRECISION,
            )
            greatest = greater
        part = heads * num_chunks + chunk
        tl.store(part_max + part, greatest, mask=is_head)
        tl.store(part_sum + part, total, mask=is_head)
        part_at = part_values + part[:, None] * SIZE + columns[None, :]
        tl.store(part_at, gathered, mask=is_head[:, None] & is_column[None, :])


@triton.jit(
    do_not_specialize=["num_chunks"],
    do_not_specialize_on_alignment=["positions", "part_max", "part_sum"],
)
def _combine_kernel(
    part_values,
    part_max,
    part_sum,
    positions,
    out,  # [T, H, D], written
    num_chunks,
    window,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    COMBINED: tl.constexpr,
    TILE: tl.constexpr,
    MOST_CHUNKS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    if OVERLAPS:
        wait()
    token = tl.program_id(0).to(tl.int64)
    head = token * HEADS + tl.program_id(1)
    position = tl.load(positions + token)
    size = _chunk_size(position, TILE, MOST_CHUNKS)
    first = 0
    if HAS_WINDOW:
        # The first chunk that the window reaches, as `_attend_kernel` computes it.
        first = tl.maximum(0, position + 1 - window) // TILE * TILE // size
    last = position // size
    columns = tl.arange(0, PADDED)
    is_column = columns < SIZE
    lanes = tl.arange(0, COMBINED)
    greatest = float("-inf")
    total = 0.0
    gathered = tl.zeros((PADDED,), dtype=tl.float32)
    # Mostly a single iteration: few pasts have more chunks than are combined at a time.
    for start in range(first // COMBINED * COMBINED, last + 1, COMBINED):
        chunks = start + lanes
        is_chunk = (chunks >= first) & (chunks <= last)
        part = head * num_chunks + chunks
        tops = tl.load(part_max + part, mask=is_chunk, other=float("-inf"))
        sums = tl.load(part_sum + part, mask=is_chunk, other=0.0)
        at = part[:, None] * SIZE + columns[None, :]
        mask = is_chunk[:, None] & is_column[None, :]
        parts = tl.load(part_values + at, mask=mask, other=0.0)
        greater = tl.maximum(greatest, tl.max(tops, axis=0))
        shrink = tl.exp(greatest - greater)
        share = tl.exp(tops - greater)
        total = total * shrink + tl.sum(share * sums, axis=0)
        gathered = gathered * shrink + tl.sum(parts * share[:, None], axis=0)
        greatest = greater
    result = (gathered / total).to(out.dtype.element_ty)
    tl.store(out + head * SIZE + columns, result, mask=is_column)


def rotate_and_write(
    qkv: Tensor,
    params: AttentionParams,
    cache: LayerCache,
    batch: TokenBatch,
    *,
    overlaps: bool = False,
) -> Tensor:
    """Rotate q and k and write k and v at the tokens' slots; returns the rotated q [T, H, D]."""
    num_tokens, size = qkv.shape[0], params.head_size
    query = qkv.new_empty(num_tokens, params.num_heads, size)
    _rotate_and_write_kernel[(num_tokens, params.num_heads + 2 * params.num_kv_heads)](
        qkv.contiguous(),
        query,
        cache.keys,
        cache.values,
        batch.positions,
        batch.slots,
        params.rope_cos,
        params.rope_sin,
        params.q_norm,
        params.k_norm,
        params.norm_eps,
        HEADS=params.num_heads,
        KV_HEADS=params.num_kv_heads,
        SIZE=size,
        HALF=triton.next_power_of_2(size // 2),
        HAS_Q_NORM=params.q_norm is not None,
        HAS_K_NORM=params.k_norm is not None,
        num_warps=1,
        **options(overlaps=overlaps),
    )
    return query


def attend(
    query: Tensor,
    params: AttentionParams,
    cache: LayerCache,
    batch: TokenBatch,
    *,
    overlaps: bool = False,
) -> Tensor:
    """Return the attention [T, H D] of rotated queries [T, H, D] over their rows' blocks."""
    num_tokens, heads, size = query.shape
    num_chunks = num_chunks_for(batch.block_tables.shape[1] * batch.block_size)
    out = torch.empty_like(query)
    per_token = heads * num_chunks * (size + 2) * 4
    slab = max(1, _WORKSPACE_BYTES // per_token)
    for start in range(0, num_tokens, slab):
        end = min(start + slab, num_tokens)
        slab_of = query[start:end], out[start:end]
        _attend_slab(*slab_of, start, num_chunks, params, cache, batch, overlaps=overlaps)
    return out.view(num_tokens, heads * size)


def _attend_slab(
    query: Tensor,
    out: Tensor,
    start: int,
    num_chunks: int,
    params: AttentionParams,
    cache: LayerCache,
    batch: TokenBatch,
    *,
    overlaps: bool,
) -> None:
    """Attend for as many tokens as the workspace holds; `start` is the index of the first."""
    num_tokens, heads, size = query.shape
    workspace = query.new_empty(num_tokens * heads * num_chunks * (size + 2), dtype=torch.float32)
    num_parts = num_tokens * heads * num_chunks
    part_values = workspace[: num_parts * size]
    part_max, part_sum = workspace[num_parts * size :].view(2, num_parts)
    positions, slots, rows = batch.positions[start:], batch.slots[start:], batch.rows[start:]
    window = params.sliding_window or 0
    group = heads // params.num_kv_heads
    padded = max(16, triton.next_power_of_2(size))
    _attend_kernel[(num_tokens, params.num_kv_heads, num_chunks)](
        query,
        cache.keys,
        cache.values,
        positions,
        slots,
        rows,
        batch.block_tables,
        part_values,
        part_max,
        part_sum,
        batch.block_tables.stride(0),
        num_chunks,
        params.scale,
        window,
        HEADS=heads,
        KV_HEADS=params.num_kv_heads,
        SIZE=size,
        PADDED=padded,
        GROUP=group,
        ROWS=max(_GROUP_ROWS, triton.next_power_of_2(group)),
        BLOCK=batch.block_size,
        TILE=_TILE,
        MOST_CHUNKS=_MOST_CHUNKS,
        HAS_WINDOW=params.sliding_window is not None,
        PRECISION="ieee",
        num_warps=4,
        num_stages=2,
        **options(overlaps=overlaps),
    )
    _combine_kernel[(num_tokens, heads)](
        part_values,
        part_max,
        part_sum,
        positions,
        out,
        num_chunks,
        window,
        HEADS=heads,
        SIZE=size,
        PADDED=padded,
        COMBINED=_COMBINED,
        TILE=_TILE,
        MOST_CHUNKS=_MOST_CHUNKS,
        HAS_WINDOW=params.sliding_window is not None,
        num_warps=2,
        **options(overlaps=overlaps),
    )
