"""Block tables of sequences: reserve room ahead of a step, release it at the end.

Rollback moves cursors, not blocks: what rejected drafts had reserved is kept for the next step.

positions:   [ computed | scheduled | drafts )      blocks held = ceil(reserved / block_size)
"""

from collections.abc import Collection

from engine.block_pool import BlockPool


class BlockManager:
    """Maps sequence ids to block tables over one pool."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self._pool = BlockPool(num_blocks)
        self._tables: dict[int, list[int]] = {}

    @property
    def num_blocks(self) -> int:
        """Blocks in all."""
        return self._pool.num_blocks

    @property
    def num_free(self) -> int:
        """Blocks nobody holds."""
        return self._pool.num_free

    def blocks_for(self, num_positions: int) -> int:
        """Blocks that hold so many positions."""
        return -(-num_positions // self.block_size)

    def reserve(self, sequence_id: int, num_positions: int, *, keep_free: int = 0) -> bool:
        """Make the sequence's table cover `num_positions`.

        Args:
            keep_free: Blocks that must stay free afterwards.

        Returns:
            False, with nothing changed, if there is no room now.
        """
        table = self._tables.get(sequence_id, [])
        missing = self.blocks_for(num_positions) - len(table)
        if missing <= 0:
            return True
        if missing + keep_free > self._pool.num_free:
            return False
        blocks = self._pool.allocate(missing)
        assert blocks is not None
        self._tables[sequence_id] = table + blocks
        return True

    def table(self, sequence_id: int) -> list[int]:
        """The sequence's blocks in order of positions."""
        return self._tables[sequence_id]

    def trim(self, sequence_id: int, num_positions: int) -> None:
        """Free the sequence's blocks beyond those that cover `num_positions`."""
        table, kept = self._tables[sequence_id], self.blocks_for(num_positions)
        if len(table) > kept:
            # A new list: a plan in flight may hold the old one.
            self._tables[sequence_id] = table[:kept]
            self._pool.release(table[kept:])

    def release(self, sequence_id: int) -> None:
        """Free all blocks of a sequence; one without blocks is fine."""
        self._pool.release(self._tables.pop(sequence_id, []))

    def check(self, sequence_ids: Collection[int]) -> None:
        """Assert the invariants, given the sequences that may hold blocks."""
        self._pool.check()
        assert self._tables.keys() <= set(sequence_ids), (
            "a sequence that is not running holds blocks"
        )
        held = [block for table in self._tables.values() for block in table]
        assert len(held) == len(set(held)), "a block is in two tables"
        assert len(held) + self._pool.num_free == self._pool.num_blocks, "a held block has no table"
