"""Physical KV blocks: how often each is held, and which contents can be found in them.

Knows hashes of contents and nothing of sequences. A published block stays findable after its last
holder is gone, until its memory is needed: the least recently used one is evicted first.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping


class BlockPool:
    """Reference counts and cached contents of blocks 0 .. num_blocks - 1.

    Every block is either referenced or free; a free block may still be cached.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._empty = deque(range(num_blocks))  # free, contents worthless
        self._idle: OrderedDict[int, None] = OrderedDict()  # free and cached, oldest use first
        self._references = [0] * num_blocks
        self._hashes: dict[int, bytes] = {}  # of cached blocks, held or idle
        self._cached: dict[bytes, int] = {}  # the same, the other way round

    @property
    def num_free(self) -> int:
        """The number of blocks that nobody holds, cached ones included."""
        return len(self._empty) + len(self._idle)

    @property
    def num_cached(self) -> int:
        """The number of blocks whose contents can be found."""
        return len(self._cached)

    def allocate(self, count: int) -> list[int] | None:
        """Take `count` free blocks, each referenced once; None if there are not that many."""
        if count > self.num_free:
            return None
        blocks = [self._take() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def find(self, contents: bytes) -> int | None:
        """Return the block that holds these contents, or None."""
        return self._cached.get(contents)

    def is_free(self, block: int) -> bool:
        """Whether nobody holds the block."""
        return self._references[block] == 0

    def share(self, blocks: Iterable[int]) -> None:
        """Take one more reference to each of these cached blocks."""
        for block in blocks:
            assert block in self._hashes, f"block {block} has nothing to share"
            self._references[block] += 1
            self._idle.pop(block, None)

    def publish(self, block: int, contents: bytes) -> None:
        """Make a held block findable, unless another block with the same contents already is."""
        assert self._references[block] > 0, f"block {block} is published but not held"
        assert block not in self._hashes, f"block {block} is published twice"
        if contents not in self._cached:
            self._cached[contents] = block
            self._hashes[block] = contents

    def forget(self, blocks: Iterable[int]) -> None:
        """Make these blocks unfindable; their holders keep them."""
        for block in blocks:
            contents = self._hashes.pop(block, None)
            if contents is None:
                continue
            del self._cached[contents]
            if block in self._idle:
                del self._idle[block]
                self._empty.append(block)

    def forget_all(self) -> None:
        """Make all blocks unfindable, because their contents are lost."""
        self.forget(list(self._hashes))

    def release(self, blocks: Iterable[int]) -> None:
        """Give up one reference to each block; blocks without references are free at once.

        Of the cached ones, the first released is the first to be evicted.
        """
        for block in blocks:
            assert self._references[block] > 0, f"block {block} is released but not held"
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self._hashes:
                    self._idle[block] = None
                else:
                    self._empty.append(block)

    def check(self, num_holders: Mapping[int, int] | None = None) -> None:
        """Assert the invariants.

        Args:
            num_holders: How often each block is held, as its holders know it.
        """
        empty, idle = set(self._empty), set(self._idle)
        assert len(empty) == len(self._empty), "a block is on the free list twice"
        assert not empty & idle, "a block is on both free lists"
        held = {block: count for block, count in enumerate(self._references) if count > 0}
        assert not (empty | idle) & held.keys(), "a block is free and held"
        assert len(empty) + len(idle) + len(held) == self.num_blocks, "a block is lost"
        assert not empty & self._hashes.keys(), "an empty block can be found"
        assert idle <= self._hashes.keys(), "a block is kept for contents nobody can find"
        found = {block: contents for contents, block in self._cached.items()}
        assert found == self._hashes, "a hash leads to another block"
        if num_holders is not None:
            assert num_holders == held, "a reference without a holder, or a holder without one"

    def _take(self) -> int:
        """Take a free block: an empty one, else the least recently used cached one."""
        if self._empty:
            return self._empty.popleft()
        block, _ = self._idle.popitem(last=False)
        del self._cached[self._hashes.pop(block)]
        return block
