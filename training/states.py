"""Hidden states on disk: what heads learn from, in shards of a fixed number of generations.

    <directory>/shard-00003-16.last.safetensors      the last layer's states, and what it predicts
    <directory>/shard-00003-16.exit-4.safetensors    the states at an exit layer

A shard's parts are written one by one, each atomically, so that a killed run goes on where it
stopped and a further exit layer costs a further part only. States are float16, scaled to unit RMS.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.worker.learning.trainee import unit_rms
from training.whole_file import whole_file

ROWS_PER_SHARD = 16  # what a killed pass has to do again at most
LAST = "last"  # the part every shard has
Part = str | int  # that, or an exit layer


def parts_of(exit_layers: Sequence[int]) -> list[Part]:
    """All parts of a shard with these exit layers."""
    return [LAST, *exit_layers]


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenStates:
    """Consecutive positions of many sequences, flat. Position i predicts the token after it.

    The first position kept of a sequence is only the `previous` of the next one: it is never
    trained on, has no target (-1) and an infinite normalizer.
    """

    exit: Tensor  # [N, E] float16, unit RMS: at the exit layer
    last: Tensor  # [N, E] float16, unit RMS: the last layer, before the final norm
    log_normalizer: Tensor  # [N] float32: logsumexp of the final logits
    target: Tensor  # [N] int32: the last layer's top-1 token
    is_first: Tensor  # [N] bool

    def to(self, device: torch.device) -> "HiddenStates":
        """The same there; itself, if it is there."""
        if self.last.device == device:
            return self
        moved = {field.name: getattr(self, field.name).to(device) for field in fields(self)}
        return HiddenStates(**moved)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowStates:
    """One generation's positions, from the one before the first that predicts output; or several
    generations', one after the other.
    """

    exits: dict[int, Tensor]  # exit layer -> [n, E], as in `HiddenStates`
    last: Tensor | None = None
    log_normalizer: Tensor | None = None
    target: Tensor | None = None
    is_first: Tensor | None = None

    @classmethod
    def of(
        cls,
        exits: dict[int, Tensor],
        last: Tensor | None,
        logits: tuple[Tensor, Tensor] | None,
        is_first: Tensor,
    ) -> "RowStates":
        """From a pass as it was.

        Args:
            exits, last: [n, E], of any scale and type.
            logits: The final logits' logsumexp and top-1 token, [n] each.
        """
        scaled = {layer: unit_rms(hidden).half() for layer, hidden in exits.items()}
        if last is None or logits is None:
            return cls(exits=scaled)
        return cls(
            exits=scaled,
            last=unit_rms(last).half(),
            log_normalizer=logits[0].masked_fill(is_first, torch.inf),
            target=logits[1].int().masked_fill(is_first, -1),
            is_first=is_first,
        )


class StateShards:
    """The shards in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, number: int, num_rows: int, part: Part) -> Path:
        """One part of a shard: `LAST`, or an exit layer.

        The count is part of the name: a last, shorter shard is made anew once generations were
        added.
        """
        name = part if isinstance(part, str) else f"exit-{part}"
        return self._directory / f"shard-{number:05d}-{num_rows}.{name}.safetensors"

    def missing(self, number: int, num_rows: int, exit_layers: Sequence[int]) -> list[Part]:
        """Parts of a shard that are not there yet."""
        return [
            part
            for part in parts_of(exit_layers)
            if not self.path(number, num_rows, part).is_file()
        ]

    def write(self, number: int, rows: Sequence[RowStates], num_rows: int) -> None:
        """Write the parts that the rows have; they are of one shard, and all of it."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for layer in rows[0].exits:
            exits = torch.cat([row.exits[layer] for row in rows])
            self._save({"exit": exits}, self.path(number, num_rows, layer))
        if rows[0].last is not None:
            names = ("last", "log_normalizer", "target", "is_first")
            tensors = {name: torch.cat([getattr(row, name) for row in rows]) for name in names}
            self._save(tensors, self.path(number, num_rows, LAST))

    def keep_only(self, exit_layers: Sequence[int]) -> None:
        """Delete the parts of all other exit layers."""
        for path in self._directory.glob("shard-*.exit-*.safetensors"):
            if int(path.name.split(".")[1].removeprefix("exit-")) not in exit_layers:
                path.unlink()

    def _save(self, tensors: dict[str, Tensor], path: Path) -> None:
        with whole_file(path) as partial:
            save_file({name: tensor.cpu() for name, tensor in tensors.items()}, str(partial))
        shard, _, part = path.name.partition(".")
        for other in self._directory.glob(f"{shard.rpartition('-')[0]}-*.{part}"):
            if other != path:
                other.unlink()  # of the same shard, when it had fewer rows


class ShardWriter:
    """Takes the states of one generation after the other, and writes every shard that is full."""

    def __init__(self, shards: StateShards, num_rows: int) -> None:
        """Args:
        num_rows: Generations before the first that will be added. What belongs into one shard
            with the last of them is left to `collect`.
        """
        self._shards = shards
        self._number, num_unknown = divmod(num_rows, ROWS_PER_SHARD)
        self._rows: list[RowStates | None] = [None] * num_unknown

    def add(self, states: RowStates | None) -> None:
        """The next generation's; None: unknown, so that its whole shard is left to `collect`."""
        self._rows.append(states)
        if len(self._rows) == ROWS_PER_SHARD:
            self.flush()
            self._rows = []
            self._number += 1

    def flush(self) -> None:
        """Write what has come, be it a whole shard or not."""
        known = [row for row in self._rows if row is not None]
        if known and len(known) == len(self._rows):
            self._shards.write(self._number, known, len(known))


class StateSource(Protocol):
    """States with one exit layer, to train on or to measure with."""

    @property
    def num_positions(self) -> int:
        """In all."""

    @property
    def names(self) -> list[str]:
        """Tell them from others."""

    def groups(self, generator: torch.Generator | None = None) -> Iterator[HiddenStates]:
        """All of them, as many at a time as fit; in random order if a generator is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldStates:
    """States of many generations in the memory of one device, at several exits."""

    exits: dict[int, Tensor]  # by exit layer, as in `HiddenStates`
    last: Tensor
    log_normalizer: Tensor
    target: Tensor
    is_first: Tensor
    name: str  # tells them from others

    @classmethod
    def empty(
        cls,
        exit_layers: Sequence[int],
        num_positions: int,
        hidden_size: int,
        device: torch.device,
        name: str,
    ) -> "HeldStates":
        """Room for so many."""
        shape = (num_positions, hidden_size)
        exits = {
            layer: torch.empty(shape, dtype=torch.float16, device=device) for layer in exit_layers
        }
        return cls(
            exits=exits,
            last=torch.empty(shape, dtype=torch.float16, device=device),
            log_normalizer=torch.empty(num_positions, device=device),
            target=torch.empty(num_positions, dtype=torch.int32, device=device),
            is_first=torch.empty(num_positions, dtype=torch.bool, device=device),
            name=name,
        )

    def put(self, place: int, rows: RowStates) -> int:
        """Put generations' states there, with all parts; returns the place behind them."""
        assert rows.last is not None, "all parts"
        here = slice(place, place + len(rows.last))
        for layer, kept in self.exits.items():
            kept[here] = rows.exits[layer]
        for name in ("last", "log_normalizer", "target", "is_first"):
            getattr(self, name)[here] = getattr(rows, name)
        return here.stop

    def at(self, layer: int) -> "HeldLayer":
        """With the states at one exit."""
        return HeldLayer(self, layer)


class HeldLayer:
    """Implements `StateSource`."""

    def __init__(self, held: HeldStates, layer: int) -> None:
        self._held = held
        self._layer = layer

    @property
    def num_positions(self) -> int:
        """See `StateSource`."""
        return len(self._held.last)

    @property
    def names(self) -> list[str]:
        """See `StateSource`."""
        return [self._held.name, str(self._layer)]

    def groups(self, generator: torch.Generator | None = None) -> Iterator[HiddenStates]:
        """See `StateSource`: there is one, as it is."""
        held = self._held
        yield HiddenStates(
            exit=held.exits[self._layer],
            last=held.last,
            log_normalizer=held.log_normalizer,
            target=held.target,
            is_first=held.is_first,
        )


class Shards:
    """Collected shards, read a bounded number of positions at a time."""

    def __init__(self, paths: Sequence[tuple[Path, Path]], max_bytes: int) -> None:
        """Args:
        paths: The `LAST` part of every shard, and the exit's.
        """
        self._paths = list(paths)
        lengths, width = [], 0
        for last, _ in self._paths:
            with safe_open(str(last), framework="pt") as file:
                length, width = file.get_slice("last").get_shape()
                lengths.append(length)
        self._num_positions = sum(lengths)
        per_group = max(1, max_bytes // (2 * 2 * width))
        self._shards_per_group = max(1, per_group // max(lengths))

    @property
    def num_positions(self) -> int:
        """In all."""
        return self._num_positions

    @property
    def names(self) -> list[str]:
        """The files they are read from."""
        return [str(path) for path in self._paths]

    def groups(self, generator: torch.Generator | None = None) -> Iterator[HiddenStates]:
        """All shards, group by group; in random order if a generator is given."""
        order = list(range(len(self._paths)))
        if generator is not None:
            order = torch.randperm(len(order), generator=generator).tolist()
        for start in range(0, len(order), self._shards_per_group):
            picked = order[start : start + self._shards_per_group]
            yield read_shards([self._paths[i] for i in picked])


def read_shards(paths: Sequence[tuple[Path, Path]]) -> HiddenStates:
    """Shards as one flat run of positions, with one exit layer."""
    parts: dict[str, list[Tensor]] = {}
    for pair in paths:
        for path in pair:
            with safe_open(str(path), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    parts.setdefault(name, []).append(file.get_tensor(name))
    return HiddenStates(**{name: torch.cat(tensors) for name, tensors in parts.items()})
