"""Heads that learn while they serve: what verified drafts teach, within a share of the time.

Runs between steps, a piece of a few milliseconds at a time, so that no step waits long. Changes
drafts, never the output. A fault in it ends the learning and nothing else.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from engine.model.exit_head import ExitHead, ExitHeads, HeadWeights, RefinementWeights
from engine.plan import Learning, RowResult
from engine.worker.learning.budget import Budget
from engine.worker.learning.checkpoints import Learned
from engine.worker.learning.examples import Examples
from engine.worker.learning.pupil import Change, Pupil
from engine.worker.learning.recorder import Recorder
from engine.worker.learning.trainee import Lens
from engine.worker.row import Row

logger = logging.getLogger(__name__)

_PER_UPDATE = 32  # examples: many small steps learn more in the same time than few large ones
_LEAST_PIECE, _MOST_PIECE = 16, 32  # examples that are computed at a time
_LONG_S, _SHORT_S = 0.02, 0.005  # for a piece: then the next are smaller, or larger
_DEPTHS, _DEPTH_WEIGHTS = (1, 2, 3), (0.6, 0.25, 0.15)  # of the drafts that are studied
_TRIED_DEPTHS = (1, 2)
_FIRST = 128  # examples before anything is studied
_LEAST_HELD_OUT, _MOST_HELD_OUT = 128, 256  # examples of a trial
_UPDATES_PER_TRIAL = 16
_MOST_DEBT_S = 0.1
_WORTH = 0.03  # agreement that a trial should have brought: else there is little left to learn
_FIRST_PAUSE, _LONGEST_PAUSE = 256, 2048  # examples, after trials that brought less
_MOST_UPDATES = 64  # without a trial, for want of traffic


class HeadLearner:
    """All exits of a model."""

    def __init__(
        self,
        heads: ExitHeads,
        weights: Mapping[int, HeadWeights],
        rows: Tensor,
        share: float,
        clock: Callable[[], float] = time.perf_counter,
        refinements: Mapping[int, RefinementWeights] | None = None,
    ) -> None:
        """Args:
        heads: Those that serve.
        weights: What is trained of them, by exit layer.
        rows: [V', E] of the LM head: the reduced vocabulary's.
        share: Of the worker's time.
        refinements: Of those heads that have one, by exit layer; these stay as they are.
        """
        first = heads.heads[0]
        assert isinstance(first, ExitHead), "heads as they are loaded"
        lens = Lens.of(first, rows)
        refinements = refinements or {}
        self._device = first.norm.device
        self._pupils = [
            Pupil(head, index, lens, weights[head.exit_layer], refinements.get(head.exit_layer))
            for index, head in enumerate(heads.heads)
            if isinstance(head, ExitHead)
        ]
        self._examples = Examples(len(heads.heads), rows.shape[1], len(rows) + 1, self._device)
        self.recorder = Recorder(self._examples, heads, self._observe, clock)
        self.on_change: Callable[[], None] = lambda: None  # told when serving weights have changed
        self._budget = Budget(share)
        self._clock = clock
        self._random = random.Random(0)
        self._piece = _MOST_PIECE
        self._num_studied = 0  # examples before this one are studied
        self._pause = 0
        self._resumes_at = 0  # once so many examples have been written
        self._updates_since_trial = 0
        self._course = self._pieces()
        self._news = _News()

    def resume(self, learned: Learned) -> None:
        """Go on with what an earlier worker had learned."""
        for pupil in self._pupils:
            version = learned.versions[pupil.exit_layer]
            if version:
                pupil.resume(learned.weights[pupil.exit_layer], version)

    def learned(self) -> Learned:
        """What serves now."""
        return Learned(
            versions={pupil.exit_layer: pupil.version for pupil in self._pupils},
            weights={pupil.exit_layer: pupil.serving for pupil in self._pupils},
        )

    @property
    def pupils(self) -> list[Pupil]:
        """One per exit, in the order of the layers."""
        return self._pupils

    def note_step(self, seconds: float) -> None:
        """A step took so long; what was recorded in it is learning's."""
        recorded = self.recorder.take_seconds()
        self._budget.earn(seconds - recorded)
        self._budget.spend(recorded)
        self._news.seconds += recorded
        # Where recording alone takes more than the share, some steps pass unseen.
        is_affordable = self._budget.saved_s > -_MOST_DEBT_S
        self.recorder.is_open = is_affordable and not self.recorder.is_broken

    @torch.inference_mode()
    def learn(self, *, is_idle: bool) -> bool:
        """One piece of work, if there is any and it may be done now.

        Returns:
            Whether there was.
        """
        if self.recorder.is_broken or not self._budget.allows(is_idle=is_idle):
            return False
        started = self._clock()
        try:
            did_something = next(self._course)
        except Exception:  # no request is to suffer for it
            logger.exception("heads learn no more")
            self.recorder.is_broken = True
            return False
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        seconds = self._clock() - started
        self._budget.spend(seconds)
        self._news.seconds += seconds
        return did_something

    def _fit_piece(self, seconds: float) -> None:
        """Steps do not wait long for a piece."""
        if seconds > _LONG_S:
            self._piece = max(_LEAST_PIECE, self._piece // 2)
        elif seconds < _SHORT_S:
            self._piece = min(_MOST_PIECE, self._piece * 2)

    def take_news(self) -> Learning:
        """What was learned since the last call."""
        news, self._news = self._news, _News()
        agreements = [pupil.agreement for pupil in self._pupils]
        count = len(agreements)
        return Learning(
            num_updates=news.num_updates,
            num_adopted=news.num_adopted,
            num_dropped=news.num_dropped,
            seconds=news.seconds,
            candidate_agreement=sum(each.candidate for each in agreements) / count,
            serving_agreement=sum(each.serving for each in agreements) / count,
            shipped_agreement=sum(each.shipped for each in agreements) / count,
        )

    def _observe(self, row: Row, result: RowResult) -> None:
        """What heads expected behind the newest known token, against what came."""
        for guess in row.guesses:
            if isinstance(guess.chance.kind, int) and not guess.path and result.token_ids:
                was_right = guess.token_id == result.token_ids[0]
                self._pupils[guess.chance.kind].watch.observe(was_right=was_right)

    def _pieces(self) -> Iterator[bool]:
        """Learning without end; stops behind every piece, and says whether there was any."""
        while True:
            for pupil in self._pupils:
                self._note(pupil.check_acceptance())
            if self._examples.num_written < self._resumes_at:
                yield False
                continue
            self._hold_out()
            num_held_out = self._examples.num_written - self._num_studied
            is_trial_due = self._updates_since_trial >= _UPDATES_PER_TRIAL
            if is_trial_due and num_held_out >= _LEAST_HELD_OUT:
                yield from self._trial()
            elif self._num_studied and self._updates_since_trial < _MOST_UPDATES:
                yield from self._update()
            else:
                yield False

    def _hold_out(self) -> None:
        """The newest examples are for the next trial; older ones are studied."""
        num_written = self._examples.num_written
        if num_written >= _FIRST:
            num_held_out = min(_MOST_HELD_OUT, num_written // 2)
            self._num_studied = max(self._num_studied, num_written - num_held_out)

    def _update(self) -> Iterator[bool]:
        """One change of the weights in training, at every exit; given up where no example is left
        that follows another one: `_pieces` looks for newer ones.
        """
        for pupil in self._pupils:
            num_studied = 0
            while num_studied < _PER_UPDATE:
                runs = self._studied_runs()
                if not runs.shape[1]:
                    yield False
                    return
                started = self._clock()
                pupil.study(self._examples, runs[:, _newer(runs.shape[1], self._piece)])
                num_studied += self._piece
                self._fit_piece(self._clock() - started)
                yield True
            pupil.step()
            self._news.num_updates += 1
            yield True
        self._updates_since_trial += 1

    def _studied_runs(self) -> Tensor:
        """Runs of examples to study, of a random depth, or as long as sequences are."""
        (depth,) = self._random.choices(_DEPTHS, _DEPTH_WEIGHTS)
        runs = self._examples.runs(0, self._num_studied, depth)
        while depth > 1 and not runs.shape[1]:
            depth -= 1
            runs = self._examples.runs(0, self._num_studied, depth)
        return runs

    def _trial(self) -> Iterator[bool]:
        """Examples held out so far decide who serves; they are studied from then on."""
        first, end = self._num_studied, self._examples.num_written
        gain = 0.0
        for pupil in self._pupils:
            for depth in _TRIED_DEPTHS:  # each is tried on its share of the examples
                runs_of_depth = self._examples.runs(first, end, depth)
                mine = runs_of_depth[:, depth - 1 :: len(_TRIED_DEPTHS)]
                for runs in mine.split(self._piece, dim=1):
                    if runs.shape[1]:
                        pupil.sit(self._examples, runs)
                        yield True
            change = pupil.judge()
            self._note(change)
            if change is Change.ADOPTED:
                gain = max(gain, pupil.agreement.candidate - pupil.agreement.serving)
            yield True
        self._num_studied = end
        self._updates_since_trial = 0
        self._rest_after(gain)

    def _rest_after(self, gain: float) -> None:
        """Heads that have learned what there is to learn cost less and less."""
        if gain >= _WORTH:
            self._pause = 0
        else:
            self._resumes_at = self._examples.num_written + self._pause
            self._pause = min(max(2 * self._pause, _FIRST_PAUSE), _LONGEST_PAUSE)

    def _note(self, change: Change) -> None:
        if change is Change.NONE:
            return
        self._news.num_adopted += change is Change.ADOPTED
        self._news.num_dropped += change is Change.DROPPED
        self.on_change()


def _newer(count: int, size: int) -> Tensor:
    """So many of `count` places, drawn at random, newer ones more often: traffic changes."""
    from_newest = (torch.rand(size) ** 2 * count).long()
    return count - 1 - from_newest


class _News:
    """What `take_news` takes."""

    def __init__(self) -> None:
        self.num_updates = self.num_adopted = self.num_dropped = 0
        self.seconds = 0.0
