"""Block tables, positions and slots of a step's rows on the device."""

import pytest
import torch

from engine.plan import RowPlan
from engine.worker.forward_batch import BlockTables, ForwardBatch, TokenRef

pytestmark = pytest.mark.torch

CPU = torch.device("cpu")


def test_tables_are_sent_when_they_change() -> None:
    tables = BlockTables(CPU)
    sent = tables.of([[3, 4], [5]])
    assert sent.tolist() == [[3, 4], [5, 0]]
    assert tables.of([[3, 4], [5]]) is sent
    assert tables.of([[3, 4], [5, 6]]).tolist() == [[3, 4], [5, 6]]
    assert tables.of([[3, 4]]).tolist() == [[3, 4]]


def test_a_table_that_grows_in_place_is_another() -> None:
    """The scheduler may append to the list that it passed."""
    tables, mine = BlockTables(CPU), [3]
    tables.of([mine])
    mine.append(4)
    assert tables.of([mine]).tolist() == [[3, 4]]


def two_rows() -> list[RowPlan]:
    return [
        RowPlan(
            sequence_id=number,
            start=0,
            num_tokens=1,
            block_table=table,
            max_draft_tokens=0,
            is_decoding=True,
        )
        for number, table in enumerate(([3, 4], [5]))
    ]


def test_alternates_have_spare_slots() -> None:
    batch = ForwardBatch(two_rows(), BlockTables(CPU), 16, CPU, range(97, 112))
    tokens = batch.tokens([TokenRef(0, 17), TokenRef(0, 17, spare=4), TokenRef(1, 2, spare=0)])
    assert tokens.positions.tolist() == [17, 17, 2]
    assert tokens.slots.tolist() == [4 * 16 + 1, 101, 97]
    assert tokens.rows.tolist() == [0, 0, 1]


def test_tokens_have_slots_in_their_rows_blocks() -> None:
    batch = ForwardBatch(two_rows(), BlockTables(CPU), 16, CPU)
    tokens = batch.tokens([TokenRef(0, 17), TokenRef(1, 2)])
    assert tokens.positions.tolist() == [17, 2]
    assert tokens.slots.tolist() == [4 * 16 + 1, 5 * 16 + 2]
    assert tokens.rows.tolist() == [0, 1]
    assert tokens.block_tables.tolist() == [[3, 4], [5, 0]]
