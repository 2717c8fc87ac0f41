"""Examples are linked along their sequences, and new ones overwrite the oldest."""

import pytest
import torch

from engine.worker.learning.examples import Examples, Verified

pytestmark = pytest.mark.torch

E, COLUMNS = 2, 3


def positions(*numbers: int) -> Verified:
    """Make positions whose tensors hold their numbers."""
    values = torch.tensor(numbers, dtype=torch.float32)[:, None]
    return Verified(
        exits=values.expand(-1, E)[None],
        last=values.expand(-1, E) + 0.5,
        probs=values.expand(-1, COLUMNS),
        targets=list(numbers),
    )


def examples() -> Examples:
    return Examples(1, E, COLUMNS, torch.device("cpu"))


def add(ring: Examples, verified: Verified, before: int | None) -> int:
    """Add consecutive positions of one sequence; return the serial number of the last."""
    first, count = ring.num_written, len(verified.targets)
    ring.add(verified, [before, *range(first, first + count - 1)])
    return first + count - 1


def test_runs_follow_each_sequence_through_those_of_others():
    ring = examples()
    a = add(ring, positions(10, 11), None)
    b = add(ring, positions(20), None)
    a = add(ring, positions(12), a)
    add(ring, positions(21, 22), b)
    add(ring, positions(13), a)

    runs = ring.runs(0, ring.num_written, 2)

    assert [ring.targets(places).tolist() for places in runs] == [
        [10, 20, 11],
        [11, 21, 12],
        [12, 22, 13],
    ]
    assert ring.exit(0, runs[0])[:, 0].tolist() == [10, 20, 11]
    assert ring.last(runs[1])[:, 0].tolist() == [11.5, 21.5, 12.5]
    assert ring.probs(runs[2])[:, 0].tolist() == [12, 22, 13]


def test_a_run_never_reaches_back_to_what_was_overwritten():
    ring = examples()
    before = None
    for number in range(0, ring.capacity + 8, 8):
        before = add(ring, positions(*(n % 1000 for n in range(number, number + 8))), before)

    runs = ring.runs(0, ring.num_written, 1)

    assert runs.shape == (2, ring.capacity - 1)
    assert ring.targets(runs[0])[0] == ring.oldest % 1000


def test_only_runs_that_end_in_the_range_are_given():
    ring = examples()
    add(ring, positions(*range(8)), None)

    runs = ring.runs(5, 7, 3)

    assert ring.targets(runs[-1]).tolist() == [5, 6]
    assert ring.targets(runs[0]).tolist() == [2, 3]


def test_wide_examples_are_fewer():
    wide = Examples(3, 4096, 8193, torch.device("meta"))

    assert 256 <= wide.capacity < examples().capacity


def test_there_is_always_room_for_what_a_trial_holds_out():
    widest = Examples(8, 16384, 128257, torch.device("meta"))

    assert widest.capacity == 256
