"""Hidden states that heads learn from, on disk in shards of a fixed number of generations.

    <directory>/shard-00003-16.last.safetensors      the last layer's states and predictions
    <directory>/shard-00003-16.exit-4.safetensors    the states at an exit layer

The parts of a shard are written one by one, each atomically, so that a killed run goes on where it
stopped and a further exit layer only adds a part. States are float16, scaled to unit RMS.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from engine.worker.learning.unit_rms import unit_rms
from training.tensor_file import write_tensors

ROWS_PER_SHARD = 16  # generations; a killed run has to repeat no more than these
LAST = "last"  # the part of the last layer, which every shard has
Part = str | int  # `LAST`, or an exit layer


def parts_of(exit_layers: Sequence[int]) -> list[Part]:
    """Return all parts of a shard with these exit layers."""
    return [LAST, *exit_layers]


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenStates:
    """The states of consecutive positions of many sequences, one after the other.

    Position i predicts the token after it. The first position of a sequence serves only as the
    previous token of its second one: it is never trained on, has no target (-1) and an infinite
    normalizer.
    """

    exit: Tensor  # [N, E] float16, unit RMS: at the exit layer
    last: Tensor  # [N, E] float16, unit RMS: the last layer, before the final norm
    log_normalizer: Tensor  # [N] float32: logsumexp of the final logits
    target: Tensor  # [N] int32: the last layer's top-1 token
    is_first: Tensor  # [N] bool: the first position kept of a sequence

    def to(self, device: torch.device) -> "HiddenStates":
        """Return the states on a device: these if they are there, or a copy."""
        if self.last.device == device:
            return self
        moved = {field.name: getattr(self, field.name).to(device) for field in fields(self)}
        return HiddenStates(**moved)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowStates:
    """The states of one generation or several, one after the other.

    A generation's positions begin with the one before the first that predicts output.
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
        """Scale and convert what a forward pass has computed.

        Args:
            exits: States [n, E] by exit layer, of any scale and type.
            last: [n, E], the last layer's states, likewise; None: not computed.
            logits: The final logits' logsumexp and top-1 token, [n] each.
            is_first: [n], whether a position is the first of its generation.
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
        """Return the file of one part of a shard.

        The number of rows is part of the name, so that a last, shorter shard is made anew once
        there are more generations.
        """
        name = part if isinstance(part, str) else f"exit-{part}"
        return self._directory / f"shard-{number:05d}-{num_rows}.{name}.safetensors"

    def missing(self, number: int, num_rows: int, exit_layers: Sequence[int]) -> list[Part]:
        """Return the parts of a shard that are not on disk yet."""
        return [
            part
            for part in parts_of(exit_layers)
            if not self.path(number, num_rows, part).is_file()
        ]

    def write(self, number: int, rows: Sequence[RowStates], num_rows: int) -> None:
        """Write a shard: all parts that its rows have.

        Args:
            rows: All states of the shard.
            num_rows: The number of generations in it.
        """
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
        write_tensors(path, tensors)
        shard, _, part = path.name.partition(".")
        for other in self._directory.glob(f"{shard.rpartition('-')[0]}-*.{part}"):
            if other != path:
                other.unlink()  # the same shard from when it had fewer rows


class ShardWriter:
    """Takes the states of one generation after the other, and writes each shard once it is full."""

    def __init__(self, shards: StateShards, num_rows: int) -> None:
        """
        Args:
            num_rows: Generations before the first that will be added. If they end within a shard,
                that shard is left to `collect`.
        """
        self._shards = shards
        self._number, num_unknown = divmod(num_rows, ROWS_PER_SHARD)
        self._rows: list[RowStates | None] = [None] * num_unknown

    def add(self, states: RowStates | None) -> None:
        """Add the next generation; None: its states are unknown, so `collect` makes its shard."""
        self._rows.append(states)
        if len(self._rows) == ROWS_PER_SHARD:
            self.flush()
            self._rows = []
            self._number += 1

    def flush(self) -> None:
        """Write the current shard, whole or not, unless some of its states are unknown."""
        known = [row for row in self._rows if row is not None]
        if known and len(known) == len(self._rows):
            self._shards.write(self._number, known, len(known))


class StateSource(Protocol):
    """States at one exit layer and the last layer, to train on or to measure with."""

    @property
    def num_positions(self) -> int:
        """The number of all positions."""

    @property
    def names(self) -> list[str]:
        """Names that identify the states, for the key of a checkpoint."""

    def groups(self, generator: torch.Generator | None = None) -> Iterator[HiddenStates]:
        """Yield all states, as many at a time as fit; in random order if a generator is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldStates:
    """States of many generations in the memory of one device, at several exits."""

    exits: dict[int, Tensor]  # by exit layer, as in `HiddenStates`
    last: Tensor
    log_normalizer: Tensor
    target: Tensor
    is_first: Tensor
    name: str  # identifies the generations

    @classmethod
    def empty(
        cls,
        exit_layers: Sequence[int],
        num_positions: int,
        hidden_size: int,
        device: torch.device,
        name: str,
    ) -> "HeldStates":
        """Allocate the tensors for `num_positions` positions."""
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
        """Store the states of some generations from a place on, and return the place after them.

        Args:
            rows: States with all parts.
        """
        assert rows.last is not None, "all parts"
        here = slice(place, place + len(rows.last))
        for layer, kept in self.exits.items():
            kept[here] = rows.exits[layer]
        for name in ("last", "log_normalizer", "target", "is_first"):
            getattr(self, name)[here] = getattr(rows, name)
        return here.stop

    def at(self, layer: int) -> "HeldLayer":
        """Return the states at one exit and at the last layer."""
        return HeldLayer(self, layer)


class HeldLayer:
    """One exit's view of `HeldStates`; implements `StateSource`."""

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
        """See `StateSource`; there is only one group, in its own order."""
        held = self._held
        yield HiddenStates(
            exit=held.exits[self._layer],
            last=held.last,
            log_normalizer=held.log_normalizer,
            target=held.target,
            is_first=held.is_first,
        )


class Shards:
    """Shards on disk, read a bounded number of positions at a time; implements `StateSource`."""

    def __init__(self, paths: Sequence[tuple[Path, Path]], max_bytes: int) -> None:
        """
        Args:
            paths: The files of the `LAST` part and the exit's part, for every shard.
            max_bytes: Most bytes of states that are read at a time.
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
        """The number of all positions."""
        return self._num_positions

    @property
    def names(self) -> list[str]:
        """The files that the states are read from."""
        return [str(path) for path in self._paths]

    def groups(self, generator: torch.Generator | None = None) -> Iterator[HiddenStates]:
        """Yield all shards, group by group; in random order if a generator is given."""
        order = list(range(len(self._paths)))
        if generator is not None:
            order = torch.randperm(len(order), generator=generator).tolist()
        for start in range(0, len(order), self._shards_per_group):
            picked = order[start : start + self._shards_per_group]
            yield read_shards([self._paths[i] for i in picked])


def read_shards(paths: Sequence[tuple[Path, Path]]) -> HiddenStates:
    """Read shards as one flat run of positions, with the states at one exit layer."""
    parts: dict[str, list[Tensor]] = {}
    for pair in paths:
        for path in pair:
            with safe_open(str(path), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    parts.setdefault(name, []).append(file.get_tensor(name))
    return HiddenStates(**{name: torch.cat(tensors) for name, tensors in parts.items()})
