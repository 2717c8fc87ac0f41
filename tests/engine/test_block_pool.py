"""Blocks are allocated once, freed once, and never lost."""

import pytest

from engine.block_pool import BlockPool


def test_allocates_distinct_blocks_until_none_is_left() -> None:
    pool = BlockPool(4)
    first = pool.allocate(3)
    assert first is not None
    assert len(set(first)) == 3
    pool.check()
    assert pool.allocate(2) is None
    assert pool.num_free == 1
    pool.release(first)
    pool.check()
    assert pool.num_free == 4


def test_a_block_cannot_be_released_twice() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    assert blocks is not None
    pool.release(blocks)
    with pytest.raises(AssertionError, match="not held"):
        pool.release(blocks)
