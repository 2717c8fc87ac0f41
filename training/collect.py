"""Hidden states of the model's own generations: at every exit layer, and the last. One
teacher-forced pass.

Written in shards (safetensors, float16, scaled to unit RMS), each atomically, so that a killed run
goes on where it stopped and memory stays bounded by one shard. What heads are trained for is
decided elsewhere.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.model.decoder import Decoder
from engine.model.ops.interface import LayerCache, TokenBatch
from engine.worker.decode_step import split_layers
from engine.worker.kv_cache import allocate_cache
from training.generations import Generation

_BLOCK_SIZE = 16
_ROWS_PER_SHARD = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenStates:
    """Consecutive positions of many sequences, flat. Position i predicts the token after it."""

    exit: Tensor  # [N, E] float16, unit RMS: at the exit layer
    last: Tensor  # [N, E] float16, unit RMS: the last layer, before the final norm
    log_normalizer: Tensor  # [N] float32: logsumexp of the final logits
    target: Tensor  # [N] int32: the last layer's top-1 token
    is_first: (
        Tensor  # [N] bool: first position of its sequence: only a `previous`, never trained on
    )


def collect(
    decoder: Decoder,
    rows: Sequence[Generation],
    exit_layers: Sequence[int],
    directory: Path,
    *,
    max_tokens_per_call: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write one shard per group of generations; existing shards are kept.

    Args:
        progress: Called with (rows done, rows in all).

    Returns:
        The shards, in the order of the rows.
    """
    directory.mkdir(parents=True, exist_ok=True)
    longest = max(len(row.prompt_ids) + len(row.output_ids) for row in rows)
    num_blocks = 2 * -(-(longest + max_tokens_per_call) // _BLOCK_SIZE) + _ROWS_PER_SHARD
    cache = allocate_cache(
        decoder.spec,
        num_blocks,
        _BLOCK_SIZE,
        dtype=decoder.ops.dtype,
        device=decoder.ops.device,
    )
    shards = []
    for start in range(0, len(rows), _ROWS_PER_SHARD):
        group = rows[start : start + _ROWS_PER_SHARD]
        # The count is part of the name: a last, shorter shard is made anew once generations were
        # added.
        number = start // _ROWS_PER_SHARD
        path = directory / f"shard-{number:05d}-{len(group)}.safetensors"
        shards.append(path)
        if not path.exists():
            parts = [
                _forward(decoder, pack, exit_layers, cache)
                for pack in _packs(group, max_tokens_per_call)
            ]
            partial = path.with_suffix(".partial")
            save_file(_joined(parts), str(partial))
            partial.rename(path)
        if progress is not None:
            progress(min(start + _ROWS_PER_SHARD, len(rows)), len(rows))
    return shards


class Shards:
    """Collected shards, read a bounded number of positions at a time."""

    def __init__(self, paths: Sequence[Path], exit_layer: int, max_bytes: int) -> None:
        self._paths = list(paths)
        self._exit_layer = exit_layer
        lengths, width = [], 0
        for path in self._paths:
            with safe_open(str(path), framework="pt") as file:
                length, width = file.get_slice("last").get_shape()
                lengths.append(length)
        self.num_positions = sum(lengths)
        per_group = max(1, max_bytes // (2 * 2 * width))
        self._shards_per_group = max(1, per_group // max(lengths))

    def groups(self, generator: torch.Generator | None = None) -> Iterator[HiddenStates]:
        """All shards, group by group; in random order if a generator is given."""
        order = list(range(len(self._paths)))
        if generator is not None:
            order = torch.randperm(len(order), generator=generator).tolist()
        for start in range(0, len(order), self._shards_per_group):
            picked = order[start : start + self._shards_per_group]
            yield read_shards([self._paths[i] for i in picked], self._exit_layer)


def read_shards(paths: Sequence[Path], exit_layer: int) -> HiddenStates:
    """Shards as one flat run of positions, with one exit layer."""
    names = {
        "exit": f"exit.{exit_layer}",
        "last": "last",
        "log_normalizer": "log_normalizer",
        "target": "target",
        "is_first": "is_first",
    }
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for path in paths:
        with safe_open(str(path), framework="pt") as file:
            for name, key in names.items():
                parts[name].append(file.get_tensor(key))
    return HiddenStates(**{name: torch.cat(tensors) for name, tensors in parts.items()})


def unit_rms(x: Tensor) -> Tensor:
    """x [..., E] scaled to root-mean-square 1 along the last dimension."""
    return x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)


def _packs(rows: Sequence[Generation], max_tokens: int) -> Iterator[list[Generation]]:
    """Rows in groups of about `max_tokens`, at least one row each."""
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
    exit_layers: Sequence[int],
    cache: Sequence[LayerCache],
) -> dict[str, Tensor]:
    """One call over whole sequences; keeps the positions that predict output tokens and the one
    before.
    """
    token_ids, batch, kept, is_first = _whole_sequences(pack, decoder.ops.device)
    hidden = decoder.embed(token_ids)
    tensors: dict[str, Tensor] = {"is_first": is_first}
    for segment in split_layers(decoder.spec.num_layers, exit_layers):
        hidden = decoder.run(hidden, segment, cache, batch)
        if segment.end != decoder.spec.num_layers:
            tensors[f"exit.{segment.end}"] = unit_rms(hidden[kept]).half().cpu()
    last = hidden[kept]
    logits = decoder.logits(last)
    tensors["last"] = unit_rms(last).half().cpu()
    tensors["log_normalizer"] = logits.logsumexp(-1).cpu()
    tensors["target"] = logits.argmax(-1).int().cpu()
    return tensors


def _whole_sequences(
    pack: Sequence[Generation], device: torch.device
) -> tuple[Tensor, TokenBatch, Tensor, Tensor]:
    """Token ids, their places, the positions to keep, and which of those come first in their
    sequence.
    """
    token_ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    tables: list[list[int]] = []
    kept: list[int] = []
    is_first: list[bool] = []
    next_block = 0
    for index, row in enumerate(pack):
        ids = row.prompt_ids + row.output_ids[:-1]
        first = max(0, len(row.prompt_ids) - 2)
        kept.extend(range(len(token_ids) + first, len(token_ids) + len(ids)))
        is_first.extend([True] + [False] * (len(ids) - first - 1))
        token_ids.extend(ids)
        positions.extend(range(len(ids)))
        rows.extend([index] * len(ids))
        num_blocks = -(-len(ids) // _BLOCK_SIZE)
        tables.append(list(range(next_block, next_block + num_blocks)))
        next_block += num_blocks
    width = max(len(table) for table in tables)
    block_tables = torch.tensor([t + [0] * (width - len(t)) for t in tables], dtype=torch.int32)
    slots = [
        tables[row][position // _BLOCK_SIZE] * _BLOCK_SIZE + position % _BLOCK_SIZE
        for row, position in zip(rows, positions, strict=True)
    ]

    def int32(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    batch = TokenBatch(
        positions=int32(positions),
        slots=int32(slots),
        rows=int32(rows),
        block_tables=block_tables.to(device),
        block_size=_BLOCK_SIZE,
    )
    return int32(token_ids), batch, torch.tensor(kept, device=device), torch.tensor(is_first)


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
