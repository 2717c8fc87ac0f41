"""A histogram for what is observed with every token and every request, all day."""

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Histogram(Collector):
    """Like prometheus_client's, whose locks and walk through the buckets cost as much per
    observation as the rendering of a token. Only one thread observes.
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
        """Note a value that was seen so many times."""
        self._counts[bisect_left(self._bounds, value)] += count
        self._sum += value * count

    def describe(self) -> list[Metric]:
        """Its name, without values."""
        return [HistogramMetricFamily(self._name, self._text, labels=self._labels)]

    def collect(self) -> Iterator[Metric]:
        """The one family."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        names = [*map(str, self._bounds), "+Inf"]
        buckets = list(zip(names, map(float, accumulate(self._counts)), strict=True))
        family.add_metric(self._label_values, buckets, self._sum)
        labels = dict(zip(self._labels, self._label_values, strict=True))
        family.add_sample(f"{self._name}_created", labels, self._created)
        yield family
