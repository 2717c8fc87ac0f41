"""A block's hash covers all tokens up to its end, and the salt."""

from engine.block_hashes import BlockHashes

TOKENS = list(range(100, 120))


def test_equal_tokens_have_equal_hashes_and_only_they() -> None:
    first = list(BlockHashes().first(3, TOKENS, 4))
    assert list(BlockHashes().first(3, TOKENS, 4)) == first
    changed = [*TOKENS[:5], 7, *TOKENS[6:]]
    others = BlockHashes().first(3, changed, 4)
    # The third block has the same tokens, but other tokens precede it.
    assert [a == b for a, b in zip(first, others, strict=True)] == [True, False, False]
    assert len(set(first)) == 3


def test_a_salt_changes_every_hash() -> None:
    plain, salted = BlockHashes().first(2, TOKENS, 4), BlockHashes("mine").first(2, TOKENS, 4)
    assert not set(plain) & set(salted)
    assert BlockHashes("\ud800").first(1, TOKENS, 4)


def test_hashes_are_computed_once_and_grow_with_the_sequence() -> None:
    hashes = BlockHashes()
    one = list(hashes.first(1, TOKENS[:6], 4))
    # The first block is not hashed again, so its changed tokens do not matter.
    three = list(hashes.first(3, [0, 0, 0, 0, *TOKENS[4:]], 4))
    assert three == list(BlockHashes().first(3, TOKENS, 4))
    assert hashes.first(1, TOKENS, 4) == one == three[:1]
