"""Block tables of sequences: reserve room ahead of a step, release it at the end.

Rollback moves cursors, not blocks: what rejected drafts had reserved is kept for the next step.

positions:   [ computed | scheduled | drafts )      blocks held = ceil(reserved / block_size)

Full blocks of computed tokens are published under a hash of their contents; a sequence that begins
with the same tokens shares them. A published block is never written again.
"""

from collections import Counter
from collections.abc import Collection, Sequence

from engine.block_pool import BlockPool


class BlockManager:
    """Maps sequence ids to block tables over one pool."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self._pool = BlockPool(num_blocks)
        self._tables: dict[int, list[int]] = {}
        self._num_published: dict[int, int] = {}  # leading blocks that are never written again

    @property
    def num_blocks(self) -> int:
        """The total number of blocks."""
        return self._pool.num_blocks

    @property
    def num_free(self) -> int:
        """The number of blocks that no sequence holds, cached ones included."""
        return self._pool.num_free

    @property
    def num_cached(self) -> int:
        """The number of blocks whose contents can be found."""
        return self._pool.num_cached

    def blocks_for(self, num_positions: int) -> int:
        """Return how many blocks it takes to hold `num_positions`."""
        return -(-num_positions // self.block_size)

    def find(self, hashes: Sequence[bytes]) -> list[int]:
        """Return the blocks that hold the longest cached prefix of these contents."""
        found: list[int] = []
        for contents in hashes:
            block = self._pool.find(contents)
            if block is None:
                break
            found.append(block)
        return found

    def start(
        self, sequence_id: int, num_positions: int, prefix: Sequence[int], *, keep_free: int = 0
    ) -> bool:
        """Give a sequence its table: found blocks first, then new ones to cover `num_positions`.

        Args:
            prefix: What `find` has just found.
            keep_free: Blocks that must stay free afterwards.

        Returns:
            False, with nothing changed, if there is no room now.
        """
        assert sequence_id not in self._tables, "a sequence starts without blocks"
        num_new = self.blocks_for(num_positions) - len(prefix)
        num_woken = sum(self._pool.is_free(block) for block in prefix)
        if num_new + num_woken + keep_free > self._pool.num_free:
            return False
        self._pool.share(prefix)  # before anything is evicted to make room
        blocks = self._pool.allocate(num_new)
        assert blocks is not None
        self._tables[sequence_id] = [*prefix, *blocks]
        self._num_published[sequence_id] = len(prefix)
        return True

    def reserve(self, sequence_id: int, num_positions: int) -> bool:
        """Make a started sequence's table cover `num_positions`.

        Returns:
            False, with nothing changed, if there is no room now.
        """
        table = self._tables[sequence_id]
        if num_positions <= len(table) * self.block_size:
            return True
        missing = self.blocks_for(num_positions) - len(table)
        blocks = self._pool.allocate(missing)
        if blocks is None:
            return False
        self._tables[sequence_id] = table + blocks
        return True

    def table(self, sequence_id: int) -> list[int]:
        """Return the sequence's blocks in order of positions."""
        return self._tables[sequence_id]

    def num_published(self, sequence_id: int) -> int:
        """Return how many of the sequence's leading blocks are published."""
        return self._num_published[sequence_id]

    def publish(self, sequence_id: int, hashes: Sequence[bytes]) -> None:
        """Make the sequence's first blocks findable; all their positions must be computed.

        Args:
            hashes: Content hashes of the sequence's first len(hashes) blocks.
        """
        table = self._tables[sequence_id]
        for index in range(self._num_published[sequence_id], len(hashes)):
            self._pool.publish(table[index], hashes[index])
        self._num_published[sequence_id] = len(hashes)

    def forget(self, sequence_id: int) -> None:
        """Make the sequence's blocks unfindable, because their contents cannot be trusted."""
        self._pool.forget(self._tables.get(sequence_id, ()))

    def forget_all(self) -> None:
        """Make all blocks unfindable, because their contents are lost."""
        self._pool.forget_all()

    def resize(self, num_blocks: int) -> None:
        """Replace all blocks by `num_blocks` empty ones; no sequence may hold any."""
        assert not self._tables, "blocks are replaced while they are held"
        self._pool = BlockPool(num_blocks)

    def trim(self, sequence_id: int, num_positions: int) -> None:
        """Free the sequence's blocks beyond those that cover `num_positions`."""
        table, kept = self._tables[sequence_id], self.blocks_for(num_positions)
        assert kept >= self._num_published[sequence_id], "published blocks hold known tokens"
        if len(table) > kept:
            # A new list: a plan in flight may hold the old one.
            self._tables[sequence_id] = table[:kept]
            self._pool.release(table[kept:])

    def release(self, sequence_id: int) -> None:
        """Free all blocks of a sequence, if it has any."""
        # Last block first: a block is never found without its predecessors, so it is evicted first.
        self._pool.release(reversed(self._tables.pop(sequence_id, [])))
        self._num_published.pop(sequence_id, None)

    def check(self, sequence_ids: Collection[int]) -> None:
        """Assert the invariants, given the sequences that may hold blocks."""
        assert self._tables.keys() <= set(sequence_ids), (
            "a sequence that is not running holds blocks"
        )
        assert self._tables.keys() == self._num_published.keys(), "a count without a table"
        num_holders = Counter(block for table in self._tables.values() for block in table)
        self._pool.check(num_holders)
        places: dict[int, int] = {}
        for sequence_id, table in self._tables.items():
            for index, block in enumerate(table):
                assert places.setdefault(block, index) == index, "a block is held at two places"
                if index >= self._num_published[sequence_id]:
                    assert num_holders[block] == 1, "a shared block may be written"
