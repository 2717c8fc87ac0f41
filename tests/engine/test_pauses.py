import gc
import sys

import pytest

from engine.pauses import limit_pauses, spare_what_is_loaded, sparing_what_is_loaded


@pytest.fixture(autouse=True)
def _as_python_begins():
    """Begin with Python's defaults, whatever tests of a whole server have left behind."""
    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(0.005)
    gc.set_threshold(700, 10, 10)
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*threshold)
    gc.unfreeze()


def test_threads_give_way_sooner_and_garbage_is_collected_less_often():
    before = gc.get_threshold()

    limit_pauses()

    assert sys.getswitchinterval() < 0.005
    assert gc.get_threshold()[0] > before[0]
    assert gc.get_threshold()[1:] == before[1:]


def test_what_is_loaded_is_not_looked_at_again():
    spare_what_is_loaded()

    assert gc.get_freeze_count() > 10_000
    assert len(gc.get_objects()) < 10_000


def test_for_a_while_what_is_loaded_is_not_looked_at():
    with sparing_what_is_loaded():
        assert gc.get_freeze_count() > 10_000
    assert gc.get_freeze_count() == 0
