"""Every batch size has a switch of its own."""

import pytest

from engine.worker.drafting_switches import DraftingSwitches


@pytest.mark.parametrize(("rows", "others"), [(1, 2), (2, 3), (8, 9), (64, 32)])
def test_batches_of_other_sizes_have_switches_of_their_own(rows: int, others: int) -> None:
    switches = DraftingSwitches()
    switches.turn_to(rows)
    mine = switches.current
    switches.turn_to(others)
    assert switches.current is not mine
    switches.turn_to(rows)
    assert switches.current is mine


def test_batches_of_about_the_same_size_share_one() -> None:
    switches = DraftingSwitches()
    seen = set()
    for num_rows in range(33, 65):
        switches.turn_to(num_rows)
        seen.add(id(switches.current))
    assert len(seen) == 1
