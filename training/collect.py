"""Collects hidden states of generations that were not recorded while they were generated.

The states come from one teacher-forced pass over each generation.
"""

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from engine.model.decoder import Decoder
from engine.model.ops.interface import LayerCache, TokenBatch
from engine.worker.decode_step import split_layers
from engine.worker.kv_cache import allocate_cache
from engine.worker.upload import send, upload
from training import gpu
from training.generations import Generation
from training.progress import ProgressReport
from training.states import (
    LAST,
    ROWS_PER_SHARD,
    HeldStates,
    Part,
    RowStates,
    StateShards,
    parts_of,
)

_BLOCK_SIZE = 16

ShardPaths = list[dict[Part, Path]]


def collect(
    decoder: Decoder,
    rows: Sequence[Generation],
    exit_layers: Sequence[int],
    directory: Path,
) -> ShardPaths:
    """Write one shard per group of generations, keeping parts that exist, and show progress.

    Returns:
        The parts of every shard, in the order of the rows.
    """
    max_tokens = _tokens_per_call(decoder)
    store = StateShards(directory)
    cache: Sequence[LayerCache] | None = None
    paths: ShardPaths = []
    with ProgressReport(f"hidden states ({directory.name})", len(rows), "sequences") as report:
        for start in range(0, len(rows), ROWS_PER_SHARD):
            group = rows[start : start + ROWS_PER_SHARD]
            number = start // ROWS_PER_SHARD
            missing = store.missing(number, len(group), exit_layers)
            if missing:
                cache = cache or _cache(decoder, rows, max_tokens)
                parts = [
                    _forward(decoder, pack, missing, cache) for pack in _packs(group, max_tokens)
                ]
                store.write(number, parts, len(group))
            paths.append(
                {part: store.path(number, len(group), part) for part in parts_of(exit_layers)}
            )
            report.update(min(start + ROWS_PER_SHARD, len(rows)))
    return paths


def collect_held(
    decoder: Decoder,
    rows: Sequence[Generation],
    exit_layers: Sequence[int],
) -> HeldStates:
    """Return the states of all generations, held on the model's device, and show progress."""
    parts = parts_of(exit_layers)
    max_tokens = _tokens_per_call(decoder)
    cache = _cache(decoder, rows, max_tokens)
    num_positions = sum(len(_kept_positions(row)) for row in rows)
    held = HeldStates.empty(
        exit_layers, num_positions, decoder.spec.hidden_size, decoder.ops.device, _name(rows)
    )
    place = done = 0
    with ProgressReport(f"hidden states {exit_layers}", len(rows), "sequences") as report:
        for pack in _packs(rows, max_tokens):
            place = held.put(place, _forward(decoder, pack, parts, cache))
            done += len(pack)
            report.update(done)
    return held


def held_bytes(decoder: Decoder, rows: Sequence[Generation], num_exits: int) -> int:
    """Return the bytes of the hidden states that `collect_held` holds, by far its largest part."""
    num_positions = sum(len(_kept_positions(row)) for row in rows)
    return num_positions * decoder.spec.hidden_size * 2 * (1 + num_exits)


def _tokens_per_call(decoder: Decoder) -> int:
    """Return the most tokens of one forward pass; on a GPU their logits take the most memory."""
    return 4096 if gpu.is_used(decoder) else 512


def _name(rows: Sequence[Generation]) -> str:
    """Return a digest of the generations' tokens."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(array("q", [*row.prompt_ids, -1, *row.output_ids, -1]).tobytes())
    return digest.hexdigest()


def _kept_positions(row: Generation) -> range:
    """Return the positions whose states are kept: all that predict output, and the one before."""
    num_prompt = len(row.prompt_ids)
    return range(max(0, num_prompt - 2), num_prompt + len(row.output_ids) - 1)


def _cache(decoder: Decoder, rows: Sequence[Generation], max_tokens: int) -> Sequence[LayerCache]:
    """Allocate a KV cache that is large enough for any pack of the rows."""
    longest = max(len(row.prompt_ids) + len(row.output_ids) for row in rows)
    num_blocks = 2 * -(-(longest + max_tokens) // _BLOCK_SIZE) + ROWS_PER_SHARD
    ops = decoder.ops
    return allocate_cache(decoder.spec, num_blocks, _BLOCK_SIZE, dtype=ops.dtype, device=ops.device)


def _packs(rows: Sequence[Generation], max_tokens: int) -> Iterator[list[Generation]]:
    """Split rows into groups of at most `max_tokens`; a longer row makes a group of its own."""
    pack: list[Generation] = []
    size = 0
    for row in rows:
        length = len(row.prompt_ids) + len(row.output_ids)
        if pack and size + length > max_tokens:
            yield pack
            pack, size = [], 0
        pack.append(row)
        size += length
    if pack:
        yield pack


@torch.inference_mode()
def _forward(
    decoder: Decoder,
    pack: Sequence[Generation],
    parts: Sequence[Part],
    cache: Sequence[LayerCache],
) -> RowStates:
    """Run one forward pass over whole sequences, down to the deepest part that is wanted."""
    token_ids, batch, kept, is_first = _whole_sequences(pack, decoder.ops.device)
    exit_layers = sorted(part for part in parts if isinstance(part, int))
    hidden = decoder.embed(token_ids)
    exits: dict[int, Tensor] = {}
    for segment in split_layers(decoder.spec.num_layers, exit_layers):
        is_last = segment.end == decoder.spec.num_layers
        if is_last and LAST not in parts:
            return RowStates.of(exits, None, None, is_first)
        hidden = decoder.run(hidden, segment, cache, batch)
        if not is_last:
            exits[segment.end] = hidden[kept]
    last = hidden[kept]
    logits = decoder.logits(last)
    return RowStates.of(exits, last, (logits.logsumexp(-1), logits.argmax(-1)), is_first)


def _whole_sequences(
    pack: Sequence[Generation], device: torch.device
) -> tuple[Tensor, TokenBatch, Tensor, Tensor]:
    """Lay whole sequences out as one forward batch.

    Returns:
        The token ids, the batch, the indices of the tokens whose states are kept, and which of the
        kept tokens is the first of its sequence.
    """
    token_ids: list[int] = []
    positions: list[Tensor] = []
    slots: list[Tensor] = []
    tables: list[list[int]] = []
    kept: list[Tensor] = []
    firsts: list[int] = []
    next_block = num_kept = 0
    for row in pack:
        ids = row.prompt_ids + row.output_ids[:-1]
        mine = _kept_positions(row)
        kept.append(torch.arange(mine.start, mine.stop) + len(token_ids))
        firsts.append(num_kept)
        num_kept += len(mine)
        token_ids += ids
        positions.append(torch.arange(len(ids), dtype=torch.int32))
        slots.append(positions[-1] + next_block * _BLOCK_SIZE)  # its blocks are consecutive
        num_blocks = -(-len(ids) // _BLOCK_SIZE)
        tables.append(list(range(next_block, next_block + num_blocks)))
        next_block += num_blocks
    width = max(len(table) for table in tables)
    block_tables = torch.tensor([t + [0] * (width - len(t)) for t in tables], dtype=torch.int32)
    lengths = torch.tensor([len(each) for each in positions])
    rows = torch.repeat_interleave(torch.arange(len(pack), dtype=torch.int32), lengths)
    is_first = torch.zeros(num_kept, dtype=torch.bool)
    is_first[firsts] = True
    batch = TokenBatch(
        positions=send(torch.cat(positions), device),
        slots=send(torch.cat(slots), device),
        rows=send(rows, device),
        block_tables=send(block_tables, device),
        block_size=_BLOCK_SIZE,
    )
    ids_there = upload(token_ids, torch.int32, device)
    return ids_there, batch, send(torch.cat(kept), device), send(is_first, device)
