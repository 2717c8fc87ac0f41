"""Physical KV blocks: a free list and reference counts. Knows nothing of sequences."""

from collections import deque


class BlockPool:
    """Blocks 0 .. num_blocks-1; free + referenced = all, at any time."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = deque(range(num_blocks))
        self._references = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks nobody holds."""
        return len(self._free)

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks, each referenced once; None if there are not that many."""
        if count > len(self._free):
            return None
        blocks = [self._free.popleft() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def release(self, blocks: list[int]) -> None:
        """Give up one reference to each; unreferenced blocks are free at once."""
        for block in blocks:
            assert self._references[block] > 0, f"block {block} is released but not held"
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free.append(block)

    def check(self) -> None:
        """Assert the invariants."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is on the free list twice"
        held = {block for block, count in enumerate(self._references) if count > 0}
        assert not free & held, "a block is free and held"
        assert len(free) + len(held) == self.num_blocks, "a block is lost"
