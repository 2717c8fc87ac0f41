"""Block tables grow, shrink and vanish; blocks never leak and are never in two tables."""

from hypothesis import given
from hypothesis import strategies as st

from engine.block_manager import BlockManager

SIZE = 4


def test_reserve_covers_positions_and_keeps_what_it_has() -> None:
    blocks = BlockManager(8, SIZE)
    assert blocks.reserve(1, 5)
    first = blocks.table(1)
    assert len(first) == 2
    assert blocks.reserve(1, 8)
    assert blocks.table(1) == first
    assert blocks.reserve(1, 9)
    assert blocks.table(1)[:2] == first
    blocks.check([1])


def test_reserve_changes_nothing_when_there_is_no_room() -> None:
    blocks = BlockManager(4, SIZE)
    assert blocks.reserve(1, 8)
    assert not blocks.reserve(2, 9)
    assert not blocks.reserve(2, 8, keep_free=1)
    assert blocks.num_free == 2
    assert blocks.reserve(2, 8)


def test_trim_frees_the_surplus_and_leaves_plans_in_flight_alone() -> None:
    blocks = BlockManager(4, SIZE)
    assert blocks.reserve(1, 12)
    in_flight = blocks.table(1)
    blocks.trim(1, 5)
    assert (len(blocks.table(1)), len(in_flight), blocks.num_free) == (2, 3, 2)
    blocks.trim(1, 8)
    assert len(blocks.table(1)) == 2


def test_release_is_idempotent() -> None:
    blocks = BlockManager(4, SIZE)
    assert blocks.reserve(1, 12)
    blocks.release(1)
    blocks.release(1)
    assert blocks.num_free == 4


OPERATIONS = st.tuples(
    st.sampled_from(["reserve", "trim", "release"]), st.integers(0, 3), st.integers(1, 40)
)


@given(st.lists(OPERATIONS, max_size=60))
def test_any_order_of_operations_keeps_the_invariants(operations: list) -> None:
    blocks = BlockManager(12, SIZE)
    covered = dict.fromkeys(range(4), 0)
    for name, sequence_id, positions in operations:
        if name == "reserve" and blocks.reserve(sequence_id, positions):
            covered[sequence_id] = max(covered[sequence_id], positions)
        elif name == "trim" and covered[sequence_id]:
            blocks.trim(sequence_id, positions)
            covered[sequence_id] = min(covered[sequence_id], positions)
        elif name == "release":
            blocks.release(sequence_id)
            covered[sequence_id] = 0
        blocks.check(range(4))
        for other, positions_covered in covered.items():
            if positions_covered:
                assert len(blocks.table(other)) >= blocks.blocks_for(positions_covered)
