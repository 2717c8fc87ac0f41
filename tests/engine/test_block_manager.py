"""Block tables grow, shrink and end; blocks never leak, and are shared only when full."""

from hypothesis import given
from hypothesis import strategies as st

from engine.block_manager import BlockManager

SIZE = 4


def test_reserve_covers_positions_and_keeps_what_it_has() -> None:
    blocks = BlockManager(8, SIZE)
    assert blocks.start(1, 5, [])
    first = blocks.table(1)
    assert len(first) == 2
    assert blocks.reserve(1, 8)
    assert blocks.table(1) == first
    assert blocks.reserve(1, 9)
    assert blocks.table(1)[:2] == first
    blocks.check([1])


def test_reserve_changes_nothing_when_there_is_no_room() -> None:
    blocks = BlockManager(4, SIZE)
    assert blocks.start(1, 8, [])
    assert not blocks.start(2, 9, [])
    assert not blocks.start(2, 8, [], keep_free=1)
    assert not blocks.reserve(1, 17)
    assert blocks.num_free == 2
    assert blocks.start(2, 8, [])


def test_trim_frees_the_surplus_and_leaves_plans_in_flight_alone() -> None:
    blocks = BlockManager(4, SIZE)
    assert blocks.start(1, 12, [])
    in_flight = blocks.table(1)
    blocks.trim(1, 5)
    assert (len(blocks.table(1)), len(in_flight), blocks.num_free) == (2, 3, 2)
    blocks.trim(1, 8)
    assert len(blocks.table(1)) == 2


def test_release_is_idempotent() -> None:
    blocks = BlockManager(4, SIZE)
    assert blocks.start(1, 12, [])
    blocks.release(1)
    blocks.release(1)
    assert blocks.num_free == 4


def contents(*names: str) -> list[bytes]:
    """Return the hashes of a sequence's blocks, given a name for the content of each."""
    return ["/".join(names[: i + 1]).encode() for i in range(len(names))]


def test_a_prefix_is_shared_and_outlives_who_computed_it() -> None:
    blocks = BlockManager(8, SIZE)
    assert blocks.start(1, 3 * SIZE, [])
    blocks.publish(1, contents("a", "b"))
    found = blocks.find(contents("a", "b", "c"))
    assert found == blocks.table(1)[:2]
    assert blocks.start(2, 4 * SIZE, found)
    assert blocks.table(2)[:2] == found
    assert blocks.num_free == 8 - 3 - 2
    blocks.check([1, 2])
    blocks.release(1)
    blocks.release(2)
    assert (blocks.num_free, blocks.num_cached) == (8, 2)
    assert blocks.find(contents("a", "b", "c")) == found
    assert blocks.find(contents("b")) == []
    blocks.check([])


def test_found_blocks_are_not_evicted_to_make_room_for_who_found_them() -> None:
    blocks = BlockManager(4, SIZE)
    assert blocks.start(1, 4 * SIZE, [])
    blocks.publish(1, contents("a", "b", "c", "d"))
    blocks.release(1)
    found = blocks.find(contents("a", "b"))
    assert not blocks.start(2, 5 * SIZE, found)
    assert not blocks.start(2, 3 * SIZE, found, keep_free=2)
    assert blocks.num_cached == 4
    assert blocks.start(2, 4 * SIZE, found)
    assert blocks.table(2)[:2] == found
    assert blocks.num_cached == 2
    blocks.check([2])


def test_the_end_of_a_prefix_is_evicted_before_its_beginning() -> None:
    blocks = BlockManager(3, SIZE)
    assert blocks.start(1, 3 * SIZE, [])
    blocks.publish(1, contents("a", "b", "c"))
    blocks.release(1)
    assert blocks.start(2, SIZE, [])
    assert len(blocks.find(contents("a", "b", "c"))) == 2


def test_forgetting_a_sequence_hides_its_blocks_from_others() -> None:
    blocks = BlockManager(4, SIZE)
    assert blocks.start(1, 2 * SIZE, [])
    blocks.publish(1, contents("a"))
    blocks.forget(1)
    assert blocks.find(contents("a")) == []
    blocks.publish(1, contents("a", "b"))  # cannot be found without its predecessor
    assert blocks.find(contents("a", "b")) == []
    blocks.release(1)
    blocks.forget_all()
    blocks.check([])
    assert (blocks.num_cached, blocks.num_free) == (0, 4)


OPERATIONS = st.tuples(
    st.sampled_from(["reserve", "publish", "publish", "trim", "release", "forget", "forget_all"]),
    st.integers(0, 3),
    st.integers(1, 40),
    st.lists(st.sampled_from("ab"), min_size=10, max_size=10),
)


class Bench:
    """A manager, and the contents that its sequences and blocks must have, each given by a name."""

    def __init__(self) -> None:
        self.blocks = BlockManager(12, SIZE)
        self.names: dict[int, list[str]] = {}  # contents of the blocks, by running sequence
        self.covered: dict[int, int] = {}
        self.written: dict[int, bytes] = {}  # hash of the content, by block

    def start(self, sequence_id: int, positions: int, names: list[str]) -> None:
        prefix = self.blocks.find(contents(*names)[: (positions - 1) // SIZE])
        assert [self.written[block] for block in prefix] == contents(*names)[: len(prefix)]
        if self.blocks.start(sequence_id, positions, prefix):
            self.names[sequence_id], self.covered[sequence_id] = names, positions

    def reserve(self, sequence_id: int, positions: int) -> None:
        if self.blocks.reserve(sequence_id, positions):
            self.covered[sequence_id] = max(self.covered[sequence_id], positions)

    def publish(self, sequence_id: int, positions: int) -> None:
        before = self.blocks.num_published(sequence_id)
        count = max(before, min(self.covered[sequence_id], positions) // SIZE)
        hashes = contents(*self.names[sequence_id])[:count]
        table = self.blocks.table(sequence_id)
        self.written |= dict(zip(table[before:count], hashes[before:], strict=True))
        self.blocks.publish(sequence_id, hashes)

    def trim(self, sequence_id: int, positions: int) -> None:
        kept = max(positions, self.blocks.num_published(sequence_id) * SIZE)
        self.blocks.trim(sequence_id, kept)
        self.covered[sequence_id] = min(self.covered[sequence_id], kept)

    def release(self, sequence_id: int, positions: int) -> None:
        self.blocks.release(sequence_id)
        del self.names[sequence_id], self.covered[sequence_id]

    def forget(self, sequence_id: int, positions: int) -> None:
        self.blocks.forget(sequence_id)

    def forget_all(self, sequence_id: int, positions: int) -> None:
        self.blocks.forget_all()

    def check(self) -> None:
        self.blocks.check(self.names)
        for sequence_id, covered in self.covered.items():
            assert len(self.blocks.table(sequence_id)) >= self.blocks.blocks_for(covered)


@given(st.lists(OPERATIONS, max_size=80))
def test_any_order_of_operations_keeps_the_invariants(operations: list) -> None:
    bench = Bench()
    for name, sequence_id, positions, names in operations:
        if sequence_id in bench.names:
            getattr(bench, name)(sequence_id, positions)
        else:
            bench.start(sequence_id, positions, names)
        bench.check()
