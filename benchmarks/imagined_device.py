"""A device that is only imagined: parts of a step take the time they are said to, beside a host
that is real. What is left of a step is the host's work, and how much of it the device waits for.

Its model is a table that says which token follows which. A head there knows a share of the table;
shapes are as small as they can be, and sampling's noise is none of its affair.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import log
from typing import Any

import torch
from torch import Tensor

from engine.model.noise import SaltedIds
from engine.model.ops.interface import (
    DecoderLayer,
    LayerCache,
    PackedHead,
    TokenBatch,
)
from engine.model.ops.torch_ops import TorchLinear, TorchOps

# Logarithms of shares that a head gives: its best token where it is right and where it is wrong,
# the second-best, and any other.
_SURE, _UNSURE, _SECOND, _OTHERS = log(0.9), log(0.3), log(0.05), log(0.02)


@dataclass(slots=True)
class Work:
    """What host and device did between two moments."""

    host_s: float = 0.0  # the host computed
    felt_s: float = 0.0  # of that, the device had nothing to do
    num_launches: int = 0
    num_reads: int = 0


class DeviceClock:
    """The host's seconds beside a device: its own CPU time, and what it waits for the device. What
    plays the device takes none.
    """

    def __init__(self, launch_s: float = 0.0) -> None:
        """Args:
        launch_s: What a launch takes the host.
        """
        self._launch_s = launch_s
        self._offset = 0.0
        self._started: float | None = None  # of a stand-in's work
        self._free_at = self()  # when the device has done what was launched
        self._told_at = self._free_at
        self._waited_s = 0.0
        self._work = Work()

    def __call__(self) -> float:
        now = time.thread_time() if self._started is None else self._started
        return now + self._offset

    @contextmanager
    def playing(self) -> Iterator[None]:
        """A stand-in for one launch works, which takes no time. May be nested."""
        if self._started is not None:
            yield
            return
        self._started = time.thread_time()
        self._work.num_launches += 1
        try:
            yield
        finally:
            self._offset -= time.thread_time() - self._started - self._launch_s
            self._started = None

    def run(self, seconds: float) -> None:
        """Within a launch: the device has so much more to do."""
        now = self() + self._launch_s
        self._work.felt_s += max(0.0, now - self._free_at)
        self._free_at = max(now, self._free_at) + seconds

    @property
    def free_at(self) -> float:
        """When the device has done what has been launched so far."""
        return self._free_at

    def wait_until(self, moment: float) -> None:
        """The host waits for something that the device has ready then."""
        self._work.num_reads += 1
        waited_s = max(0.0, moment - self())
        self._offset += waited_s
        self._waited_s += waited_s

    def tell(self) -> Work:
        """What was done since this was asked for before."""
        work, self._work = self._work, Work()
        now = self()
        work.host_s = now - self._told_at - self._waited_s
        self._told_at, self._waited_s = now, 0.0
        return work

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """A `capture.Capture`: replayed by calling again."""
        with self.playing():
            run()

        def replay() -> None:
            with self.playing():
                run()

        return replay


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds of one token; of each further one in the same call, this share more."""

    layer_s: float
    logits_s: float
    head_s: float
    sample_s: float = 8e-6
    expect_s: float = 12e-6
    further: float = 0.01

    def of(self, seconds: float, num_tokens: int) -> float:
        """For so many tokens."""
        return seconds * (1.0 + self.further * (num_tokens - 1))


class ImaginedOps(TorchOps):
    """`Ops` whose hidden states are token ids, and so are their logits. What serving here does not
    ask for is as it is in plain torch.
    """

    def __init__(
        self, clock: DeviceClock, costs: Costs, vocab_size: int, *, period: int, agreement: float
    ) -> None:
        """Args:
        period: Tokens after which a text repeats itself.
        agreement: Share of tokens behind which a head is right; of these it is sure.
        """
        super().__init__()
        self.name = "imagined"
        dice = random.Random(1)
        ids = list(range(2, 2 + period))
        dice.shuffle(ids)
        following = dict(zip(ids, [*ids[1:], ids[0]], strict=True))
        next_ids = [following.get(token_id, ids[0]) for token_id in range(vocab_size)]
        is_right = [dice.random() < agreement for _ in next_ids]
        shares = [_SURE if right else _UNSURE for right in is_right]
        best = [i if right else 1 for i, right in zip(next_ids, is_right, strict=True)]
        # Best column and share, the follower's, the second-best column and its share.
        facts = [(best[i], shares[i], _OTHERS, 0, _SECOND) for i in range(vocab_size)]
        self._expected = torch.tensor(facts, dtype=torch.float64)
        self._next_ids = torch.tensor(next_ids)
        self._clock = clock
        self._costs = costs

    def embed(self, token_ids: Tensor, table: TorchLinear) -> Tensor:
        """See `Ops.embed`."""
        with self._clock.playing():
            self._clock.run(0.0)
            return token_ids[:, None].to(torch.float32).expand(-1, table.in_features).contiguous()

    def linear(
        self,
        x: Tensor,
        weight: TorchLinear,
        *,
        norm: Tensor | None = None,
        eps: float = 0.0,
        residual: Tensor | None = None,
    ) -> Tensor:
        """See `Ops.linear`: of the LM head."""
        with self._clock.playing():
            self._clock.run(self._costs.of(self._costs.logits_s, len(x)))
            return x[:, :1].expand(-1, weight.out_features)

    def run_layers(
        self,
        hidden: Tensor,
        layers: Sequence[DecoderLayer],
        caches: Sequence[LayerCache],
        batch: TokenBatch,
        eps: float,
    ) -> Tensor:
        """See `Ops.run_layers`."""
        with self._clock.playing():
            self._clock.run(self._costs.of(self._costs.layer_s, len(hidden)) * len(layers))
            return hidden

    def run_head(
        self,
        hidden: Tensor,
        previous: Tensor,
        lengths: Sequence[int],
        head: PackedHead,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Ops.run_head`."""
        with self._clock.playing():
            self._clock.run(self._costs.of(self._costs.head_s, len(hidden)))
            return hidden, hidden[:, :1].expand(-1, head.lm_head.out_features), hidden[:, :1]

    def sample(
        self,
        logits: Tensor,
        inverse_temperature: Tensor,
        keys: Tensor,
        token_ids: Tensor | None = None,
    ) -> Tensor:
        """See `Ops.sample`."""
        with self._clock.playing():
            self._clock.run(self._costs.of(self._costs.sample_s, len(logits)))
            return self._next_ids[logits[:, 0].long()]

    def fetch(self, values: Tensor) -> Callable[[], list[Any]]:
        """See `Ops.fetch`."""
        ready_at = self._clock.free_at

        def read() -> list[Any]:
            self._clock.wait_until(ready_at)
            return values.tolist()

        return read

    def expect(
        self,
        logits: Tensor,
        other: Tensor,
        temperatures: Tensor,
        keys: Tensor | None,
        ids: SaltedIds,
        followers: Tensor,
    ) -> Tensor:
        """See `Ops.expect`."""
        with self._clock.playing():
            self._clock.run(self._costs.of(self._costs.expect_s, len(logits)))
            expected = self._expected[logits[:, 0].long()]
            is_best = followers == expected[:, 0].long()
            expected[:, 2] = torch.where(is_best, expected[:, 1], _OTHERS)
            return expected
