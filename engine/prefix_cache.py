"""Lets sequences that begin alike share their first blocks.

Blocks are found when a sequence starts and published as it fills them. The block manager keeps
them; this module decides which ones a sequence may read and which ones it gives to others.
"""

from engine.block_manager import BlockManager
from engine.request import FinishReason
from engine.sequence import Sequence


class PrefixCache:
    """The prefix cache of one block manager; switched off, it finds and publishes nothing."""

    def __init__(self, blocks: BlockManager, *, is_on: bool) -> None:
        self._blocks = blocks
        self._is_on = is_on
        self.num_queries = 0  # prompt tokens looked up
        self.num_hits = 0  # prompt tokens looked up and found
        self.num_misses = 0  # prompt tokens not found, looked up or not

    def find(self, sequence: Sequence) -> list[int]:
        """Return blocks that hold the sequence's first tokens.

        Its last token is always left to compute, because logits are not kept.
        """
        if not self._reads(sequence):
            return []
        size = self._blocks.block_size
        count = (sequence.num_tokens - 1) // size
        return self._blocks.find(sequence.block_hashes.first(count, sequence.token_ids, size))

    def count(self, sequence: Sequence, num_cached: int) -> None:
        """Count what a sequence found when it first started."""
        self.num_misses += sequence.num_prompt_tokens - num_cached
        if self._reads(sequence):
            self.num_queries += sequence.num_prompt_tokens
            self.num_hits += num_cached

    def publish(self, sequence: Sequence) -> None:
        """Let others share the blocks that a finished step has filled with committed tokens."""
        if not self._is_on:
            return
        if sequence.finish_reason is FinishReason.ERROR:
            self._blocks.forget(sequence.sequence_id)  # what is wrong may be in its blocks
            return
        size = self._blocks.block_size
        count = sequence.num_computed_tokens // size
        if count > self._blocks.num_published(sequence.sequence_id):
            hashes = sequence.block_hashes.first(count, sequence.token_ids, size)
            self._blocks.publish(sequence.sequence_id, hashes)

    def _reads(self, sequence: Sequence) -> bool:
        return self._is_on and not sequence.needs_every_position
