"""How the system reports processes that were killed because memory ran out."""

import pytest

from engine.memory_kills import num_memory_kills


@pytest.mark.parametrize(
    ("text", "number"),
    [("nr_free_pages 7\noom_kill 3\n", 3), ("nr_free_pages 7\n", None), ("a b c\n", None)],
)
def test_the_counter_is_read_where_there_is_one(tmp_path, text, number):
    file = tmp_path / "vmstat"
    file.write_text(text)

    assert num_memory_kills(file) == number


def test_where_nothing_is_said_nothing_is_known(tmp_path):
    assert num_memory_kills(tmp_path / "nowhere") is None
