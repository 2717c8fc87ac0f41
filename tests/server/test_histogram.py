"""Our histogram gives the same figures as that of prometheus_client."""

import random
import time

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Histogram as LibraryHistogram

from server.histogram import Histogram

BOUNDS = (0.005, 0.01, 0.5, 2.0)


def test_it_reads_like_the_librarys():
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    reference = LibraryHistogram("a:b", "text", ("x",), buckets=BOUNDS, registry=theirs).labels("y")
    histogram = Histogram("a:b", "text", ("x",), ("y",), BOUNDS)
    ours.register(histogram)
    draw = random.Random(0)
    for value in [*BOUNDS, 3.0, *(draw.random() for _ in range(50))]:
        histogram.observe(value, 2)
        for _ in range(2):
            reference.observe(value)

    def lines(registry):
        text = generate_latest(registry).decode().splitlines()
        without = ("a:b_sum{", "a:b_created{")
        return [line for line in text if not line.startswith(without)]

    assert lines(ours) == lines(theirs)
    values = dict(x.rsplit(" ", 1) for x in generate_latest(ours).decode().splitlines())
    assert float(values['a:b_sum{x="y"}']) == pytest.approx(reference._sum.get())
    assert float(values['a:b_created{x="y"}']) == pytest.approx(time.time(), abs=60)
