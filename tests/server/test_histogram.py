"""Our histogram says the same as prometheus_client's."""

import random

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from server.histogram import TokenHistogram

BOUNDS = (0.005, 0.01, 0.5, 2.0)


def test_it_reads_like_the_librarys():
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    reference = Histogram("a:b", "text", ("x",), buckets=BOUNDS, registry=theirs).labels("y")
    histogram = TokenHistogram("a:b", "text", ("x",), ("y",), BOUNDS)
    ours.register(histogram)
    draw = random.Random(0)
    for value in [*BOUNDS, 3.0, *(draw.random() for _ in range(50))]:
        histogram.observe(value, 2)
        for _ in range(2):
            reference.observe(value)

    def lines(registry):
        text = generate_latest(registry).decode().splitlines()
        return [line for line in text if "_created" not in line and "_sum" not in line]

    assert lines(ours) == lines(theirs)
    total = next(x for x in generate_latest(ours).decode().splitlines() if "_sum" in x)
    assert float(total.split()[-1]) == pytest.approx(reference._sum.get())
