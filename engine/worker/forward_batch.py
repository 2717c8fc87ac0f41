"""The rows of one step, and the tensors that say where the tokens of a call are.

Knows plans and tensors, but no layers, exits or sampling.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.model.ops.interface import TokenBatch
from engine.plan import RowPlan
from engine.worker.segment_runner import NewestTokens
from engine.worker.upload import send, upload


class TokenRef(NamedTuple):
    """One token of the step."""

    row: int  # index into the step's rows
    position: int
    spare: int | None = None  # index of its slot among the step's spare slots (alternates)


class BlockTables:
    """The rows' block tables on the device.

    They are sent again only when they have changed, which is rare in steps that only decode.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # As they were sent. The scheduler may append to a list, but does not change its start.
        self._tables: list[list[int]] = []
        self._lengths: list[int] = []
        self._here = np.zeros((0, 0), dtype=np.int32)
        self._sent = torch.from_numpy(self._here)

    def of(self, tables: list[list[int]]) -> Tensor:
        """Return the tables [S, most blocks] int32, the same tensor while they do not change.

        The tensor is read-only.
        """
        lengths = [*map(len, tables)]
        if lengths != self._lengths or tables != self._tables:
            self._write(tables, lengths)
            self._sent = send(torch.from_numpy(self._here.copy()), self._device)
        return self._sent

    def _write(self, tables: list[list[int]], lengths: list[int]) -> None:
        """Update the host's copy; if the rows are the same, only the tables that have changed."""
        before, width = self._here, max(lengths)
        is_same = len(tables) == len(before) and width >= before.shape[1]
        if not is_same or width > before.shape[1]:
            self._here = np.zeros((len(tables), width), dtype=np.int32)
        if is_same:
            self._here[:, : before.shape[1]] = before
        for row, (table, length) in enumerate(zip(tables, lengths, strict=True)):
            if is_same and length == self._lengths[row] and table == self._tables[row]:
                continue
            self._here[row, :length] = table
            self._here[row, length:] = 0
        self._tables, self._lengths = tables, lengths


class ForwardBatch:
    """A step's rows; builds the `TokenBatch` of any set of their tokens."""

    def __init__(
        self,
        rows: Sequence[RowPlan],
        block_tables: BlockTables,
        block_size: int,
        device: torch.device,
        spare_slots: Sequence[int] = (),
    ) -> None:
        """
        Args:
            spare_slots: Slots for alternates.
        """
        self._spare_slots = spare_slots
        self._rows = rows
        self._tables = [row.block_table for row in rows]
        self._block_size = block_size
        self._device = device
        self._block_tables = block_tables.of(self._tables)

    def tokens(self, refs: Sequence[TokenRef]) -> TokenBatch:
        """Return positions, slots and rows of the given tokens, on the device."""
        # One tensor, so that a GPU is sent only one.
        places = upload(self._places(refs), torch.int32, self._device)
        return TokenBatch(
            positions=places[0],
            slots=places[1],
            rows=places[2],
            block_tables=self._block_tables,
            block_size=self._block_size,
        )

    def newest(self, token_ids: Sequence[int]) -> NewestTokens:
        """Return every row's first token in the step; nothing is sent to the device yet."""
        return self._at([row.start for row in self._rows], token_ids)

    @property
    def has_room_for_next(self) -> bool:
        """Whether every row has a slot for the token after its first one."""
        size = self._block_size
        return all(row.start + 1 < len(row.block_table) * size for row in self._rows)

    def following(self, token_ids: Tensor) -> NewestTokens:
        """Return the token after every row's first one, which the next step will plan.

        Args:
            token_ids: [S], on the device.
        """
        return self._at([row.start + 1 for row in self._rows], token_ids)

    def _at(self, positions: list[int], token_ids: Sequence[int] | Tensor) -> NewestTokens:
        """Return one token per row."""
        size = self._block_size
        tables = zip(self._tables, positions, strict=True)
        slots = [table[place // size] * size + place % size for table, place in tables]
        places = (positions, slots, [*range(len(positions))])
        return NewestTokens(token_ids, places, self._block_tables)

    def _places(self, refs: Sequence[TokenRef]) -> list[list[int]]:
        """Return positions, slots and rows as lists."""
        positions = [ref.position for ref in refs]
        return [positions, [*map(self.slot, refs)], [ref.row for ref in refs]]

    def slot(self, ref: TokenRef) -> int:
        """Return the slot of a token in the KV pool."""
        if ref.spare is not None:
            return self._spare_slots[ref.spare]
        size = self._block_size
        return self._tables[ref.row][ref.position // size] * size + ref.position % size

    def int32(self, values: Sequence[int]) -> Tensor:
        """Return a list as an int32 tensor on the device."""
        return upload(values, torch.int32, self._device)
