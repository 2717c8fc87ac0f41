"""The watch notices a fall of acceptance, and takes no chance variation for one."""

import random

import pytest

from engine.worker.learning.watch import AcceptanceWatch


def see(watch: AcceptanceWatch, rate: float, count: int, seed: int = 0) -> None:
    source = random.Random(seed)
    for _ in range(count):
        watch.observe(was_right=source.random() < rate)


def test_a_fall_is_noticed():
    watch = AcceptanceWatch()
    see(watch, 0.7, 400)
    watch.restart()
    see(watch, 0.4, 100)
    assert not watch.has_fallen, "too early to say"
    see(watch, 0.4, 100)
    assert watch.has_fallen


@pytest.mark.parametrize("seed", range(5))
def test_the_same_rate_is_no_fall(seed):
    watch = AcceptanceWatch()
    see(watch, 0.6, 500, seed)
    watch.restart()
    see(watch, 0.62, 400, seed + 100)
    assert not watch.has_fallen


def test_without_anything_before_nothing_has_fallen():
    watch = AcceptanceWatch()
    see(watch, 1.0, 20)
    watch.restart()
    see(watch, 0.0, 500)
    assert not watch.has_fallen


def test_at_first_the_rate_is_the_plain_mean():
    watch = AcceptanceWatch()
    for was_right in (True, False, True, True):
        watch.observe(was_right=was_right)
    assert watch.rate == pytest.approx(0.75)
