"""An imagined device beside a real host: the parts of a step take the times that they are given.

What is left of a step is the host's work, and how much of it the device waits for. The model is a
table that says which token follows which, of which a head knows a share. Shapes are as small as
possible, and sampling ignores the noise.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import log
from typing import Any, Protocol

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

# Logarithms of the probabilities that a head gives to its best token where it is right and where it
# is wrong, to the second-best token, and to any other.
_SURE, _UNSURE, _SECOND, _OTHERS = log(0.9), log(0.3), log(0.05), log(0.02)


@dataclass(slots=True)
class Work:
    """The work of host and device between two moments."""

    host_s: float = 0.0  # the host's CPU time
    felt_s: float = 0.0  # the part of it in which the device had nothing to do
    num_launches: int = 0
    num_reads: int = 0


class DeviceClock:
    """A clock of the host's CPU time and of the time that it waits for the imagined device.

    The code that stands in for the device takes no time on it.
    """

    def __init__(self, launch_s: float = 0.0, host: Callable[[], float] = time.thread_time) -> None:
        """
        Args:
            launch_s: Seconds that a launch takes the host.
            host: The host's own time, in seconds.
        """
        self._launch_s = launch_s
        self._host = host
        self._offset = 0.0
        self._started: float | None = None  # when the stand-in began; None: none is running
        self._free_at = self()  # when the device has done what was launched
        self._told_at = self._free_at
        self._waited_s = 0.0
        self._work = Work()

    def __call__(self) -> float:
        now = self._host() if self._started is None else self._started
        return now + self._offset

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Run a stand-in for one launch, whose own time does not count; may be nested."""
        if self._started is not None:
            yield
            return
        self._started = self._host()
        self._work.num_launches += 1
        try:
            yield
        finally:
            self._offset -= self._host() - self._started - self._launch_s
            self._started = None

    def run(self, seconds: float) -> None:
        """Give the device work for some seconds; called within a launch."""
        now = self() + self._launch_s
        self._work.felt_s += max(0.0, now - self._free_at)
        self._free_at = max(now, self._free_at) + seconds

    def spend(self, seconds: float) -> None:
        """Let the host work for some seconds."""
        self._offset += seconds

    @property
    def free_at(self) -> float:
        """When the device has done what has been launched so far."""
        return self._free_at

    def wait_until(self, moment: float) -> None:
        """Let the host wait for a result that the device has ready at a moment."""
        self._work.num_reads += 1
        waited_s = max(0.0, moment - self())
        self._offset += waited_s
        self._waited_s += waited_s

    def tell(self) -> Work:
        """Return what was done since the last call."""
        work, self._work = self._work, Work()
        now = self()
        work.host_s = now - self._told_at - self._waited_s
        self._told_at, self._waited_s = now, 0.0
        return work

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run launches once, and return a function that repeats them (see `capture.Capture`)."""
        with self.playing():
            run()

        def replay() -> None:
            with self.playing():
                run()

        return replay


class Costs(Protocol):
    """Seconds of the parts of a step, by the number of tokens of a call."""

    def layers(self, num_layers: int, num_tokens: int) -> float:
        """Return the seconds of some layers."""

    def logits(self, num_tokens: int) -> float:
        """Return the seconds of the LM head."""

    def head(self, num_tokens: int) -> float:
        """Return the seconds of an exit head."""

    def sample(self, num_tokens: int) -> float:
        """Return the seconds of choosing tokens."""

    def expect(self, num_tokens: int) -> float:
        """Return the seconds of reading what a head expects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvenCosts:
    """`Costs` of one token in each part; every further one of a call adds the share `further`."""

    layer_s: float
    logits_s: float
    head_s: float
    sample_s: float = 8e-6
    expect_s: float = 12e-6
    further: float = 0.01

    def layers(self, num_layers: int, num_tokens: int) -> float:
        """See `Costs.layers`."""
        return self._of(self.layer_s, num_tokens) * num_layers

    def logits(self, num_tokens: int) -> float:
        """See `Costs.logits`."""
        return self._of(self.logits_s, num_tokens)

    def head(self, num_tokens: int) -> float:
        """See `Costs.head`."""
        return self._of(self.head_s, num_tokens)

    def sample(self, num_tokens: int) -> float:
        """See `Costs.sample`."""
        return self._of(self.sample_s, num_tokens)

    def expect(self, num_tokens: int) -> float:
        """See `Costs.expect`."""
        return self._of(self.expect_s, num_tokens)

    def _of(self, seconds: float, num_tokens: int) -> float:
        return seconds * (1.0 + self.further * (num_tokens - 1))


class ImaginedOps(TorchOps):
    """`Ops` in which hidden states and logits are just token ids.

    Operations that this benchmark does not use are those of plain torch.
    """

    def __init__(
        self, clock: DeviceClock, costs: Costs, vocab_size: int, *, period: int, agreement: float
    ) -> None:
        """
        Args:
            period: Tokens after which a text repeats itself.
            agreement: Share of tokens after which a head is right, and sure of it.
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
        # The best column and its share, the follower's share, the second-best column and its share.
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
        """See `Ops.linear`; it is called for the LM head only."""
        with self._clock.playing():
            self._clock.run(self._costs.logits(len(x)))
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
            self._clock.run(self._costs.layers(len(layers), len(hidden)))
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
            self._clock.run(self._costs.head(len(hidden)))
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
            self._clock.run(self._costs.sample(len(logits)))
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
            self._clock.run(self._costs.expect(len(logits)))
            expected = self._expected[logits[:, 0].long()]
            is_best = followers == expected[:, 0].long()
            expected[:, 2] = torch.where(is_best, expected[:, 1], _OTHERS)
            return expected
