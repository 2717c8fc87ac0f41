"""Blocks are allocated and freed once, never lost, and found only while their contents last."""

import pytest

from engine.block_pool import BlockPool

A, B, C = b"a", b"b", b"c"


def published(pool: BlockPool, *contents: bytes) -> list[int]:
    blocks = pool.allocate(len(contents))
    assert blocks is not None
    for block, each in zip(blocks, contents, strict=True):
        pool.publish(block, each)
    return blocks


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


def test_a_shared_block_is_free_when_its_last_holder_is_gone() -> None:
    pool = BlockPool(3)
    (block,) = published(pool, A)
    pool.share([block])
    pool.check({block: 2})
    pool.release([block])
    assert pool.num_free == 2
    pool.release([block])
    assert pool.num_free == 3
    assert pool.find(A) == block
    pool.share([block])
    pool.check({block: 1})


def test_empty_blocks_are_taken_before_the_least_recently_used_cached_ones() -> None:
    pool = BlockPool(4)
    first, second, third = published(pool, A, B, C)
    pool.release([second])
    pool.release([first])
    pool.release([third])
    pool.share([second])  # now the most recently used
    pool.release([second])
    order = [pool.allocate(1) for _ in range(4)]
    assert order == [[3], [first], [third], [second]]
    assert (pool.num_cached, pool.find(A), pool.find(B), pool.find(C)) == (0, None, None, None)
    pool.check()


def test_contents_are_found_where_they_were_first() -> None:
    pool = BlockPool(2)
    first, second = published(pool, A, A)
    assert pool.find(A) == first
    pool.release([first, second])
    pool.check()
    assert pool.num_cached == 1


def test_forgotten_contents_are_never_found_again() -> None:
    pool = BlockPool(3)
    held, idle, other = published(pool, A, B, C)
    pool.release([idle])
    pool.forget([held, idle, idle])
    assert (pool.find(A), pool.find(B), pool.find(C)) == (None, None, other)
    pool.check({held: 1, other: 1})
    pool.forget_all()
    assert pool.num_cached == 0
    pool.release([held, other])
    pool.check({})
    with pytest.raises(AssertionError, match="nothing to share"):
        pool.share([held])
