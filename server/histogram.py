"""A histogram that is cheap enough to observe a value with every token."""

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Histogram(Collector):
    """A Prometheus histogram without locks: only one thread may observe.

    prometheus_client's own takes locks and walks through the buckets, which costs as much per
    observation as rendering a token.
    """

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        label_values: Sequence[str],
        bounds: Sequence[float],
    ) -> None:
        self._name, self._text = name, text
        self._labels, self._label_values = labels, label_values
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)  # not cumulative; the last is beyond all bounds
        self._sum = 0.0
        self._created = time.time()

    def observe(self, value: float, count: int = 1) -> None:
        """Record a value that was seen `count` times."""
        self._counts[bisect_left(self._bounds, value)] += count
        self._sum += value * count

    def describe(self) -> list[Metric]:
        """Declare the name, without values."""
        return [HistogramMetricFamily(self._name, self._text, labels=self._labels)]

    def collect(self) -> Iterator[Metric]:
        """Yield the histogram's one family."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        names = [*map(str, self._bounds), "+Inf"]
        buckets = list(zip(names, map(float, accumulate(self._counts)), strict=True))
        family.add_metric(self._label_values, buckets, self._sum)
        labels = dict(zip(self._labels, self._label_values, strict=True))
        family.add_sample(f"{self._name}_created", labels, self._created)
        yield family
