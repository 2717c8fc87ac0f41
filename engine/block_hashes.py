"""Names for the contents of KV blocks: equal hashes mean equal tokens all the way from the first.

    hash of block i = sha256(hash of block i - 1 | the block's token ids), the salt before block 0

The keys and values of a position depend on every token before it, so a block's name covers its
whole past. Knows no pool and no sequence.
"""

from array import array
from collections.abc import Sequence
from hashlib import sha256

_UNSALTED = sha256().digest()


class BlockHashes:
    """The hashes of one sequence's full blocks, each computed once, as the sequence grows."""

    def __init__(self, salt: str = "") -> None:
        self._root = sha256(salt.encode("utf-8", "surrogatepass")).digest() if salt else _UNSALTED
        self._hashes: list[bytes] = []

    def first(self, count: int, token_ids: Sequence[int], block_size: int) -> Sequence[bytes]:
        """Return the hashes of the first `count` blocks.

        Args:
            token_ids: The sequence's tokens, at least `count` blocks of them. They only ever grow:
                what has been hashed is not looked at again.
        """
        hashes = self._hashes
        for index in range(len(hashes), count):
            parent = hashes[-1] if hashes else self._root
            tokens = array("i", token_ids[index * block_size : (index + 1) * block_size])
            assert len(tokens) == block_size, "only full blocks have a hash"
            hashes.append(sha256(parent + tokens.tobytes()).digest())
        return hashes if len(hashes) == count else hashes[:count]
