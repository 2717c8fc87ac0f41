"""Trains exit heads on verified tokens while they serve, within a share of the worker's time.

Training runs between steps, in pieces of a few milliseconds, so that no step waits long. It changes
what is drafted, never the output. If it fails, it stops for good, and serving goes on.
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
from engine.worker.learning.candidate_trainer import ReducedLmHead
from engine.worker.learning.checkpoints import Learned
from engine.worker.learning.examples import Examples
from engine.worker.learning.head_versions import Change, HeadVersions
from engine.worker.learning.recorder import Recorder
from engine.worker.row import Row

logger = logging.getLogger(__name__)

# Examples per update: many small updates learn more in the same time than few large ones.
_PER_UPDATE = 32
_LEAST_PIECE, _MOST_PIECE = 16, 32  # bounds of the number of examples per piece
_LONG_S, _SHORT_S = 0.02, 0.005  # pieces that take longer, or less, are made smaller, or larger
# Depths of the drafts that are trained, and how often each depth is drawn.
_DEPTHS, _DEPTH_WEIGHTS = (1, 2, 3), (0.6, 0.25, 0.15)
_TRIED_DEPTHS = (1, 2)  # depths of the drafts that a trial counts
_FIRST = 128  # examples recorded before training begins
_LEAST_HELD_OUT, _MOST_HELD_OUT = 128, 256  # examples held out for a trial
_UPDATES_PER_TRIAL = 16
_MOST_DEBT_S = 0.1  # recording pauses while the budget is overdrawn by this many seconds
_WORTH = 0.03  # a trial that gains less agreement than this shows that little is left to learn
_FIRST_PAUSE, _LONGEST_PAUSE = 256, 2048  # bounds of a pause after such a trial, in new examples
_MOST_UPDATES = 64  # updates without a trial, which needs new traffic


class OnlineTrainer:
    """Trains the heads at all exits of a model."""

    def __init__(
        self,
        heads: ExitHeads,
        weights: Mapping[int, HeadWeights],
        rows: Tensor,
        share: float,
        clock: Callable[[], float] = time.perf_counter,
        refinements: Mapping[int, RefinementWeights] | None = None,
    ) -> None:
        """
        Args:
            heads: The heads that serve.
            weights: Their trainable weights, by exit layer.
            rows: [V', E], rows of the LM head for the reduced vocabulary.
            share: Share of the worker's time that learning may take.
            clock: Returns seconds; measures the time that learning takes.
            refinements: Refinements of the heads that have one, by exit layer; not trained.
        """
        first = heads.heads[0]
        assert isinstance(first, ExitHead), "heads as they are loaded"
        lm_head = ReducedLmHead.of(first, rows)
        refinements = refinements or {}
        self._device = first.norm.device
        self._heads = [
            HeadVersions(
                head, index, lm_head, weights[head.exit_layer], refinements.get(head.exit_layer)
            )
            for index, head in enumerate(heads.heads)
            if isinstance(head, ExitHead)
        ]
        self._examples = Examples(len(heads.heads), rows.shape[1], len(rows) + 1, self._device)
        self.recorder = Recorder(self._examples, heads, self._observe, clock)
        self.on_change: Callable[[], None] = lambda: None  # called when serving weights change
        self._budget = Budget(share)
        self._clock = clock
        self._random = random.Random(0)
        self._piece = _MOST_PIECE  # examples per piece
        self._training_end = 0  # serial number; examples before it are trained on
        self._pause = 0
        self._resumes_at = 0  # training pauses until this many examples have been recorded
        self._updates_since_trial = 0
        self._work = self._pieces()
        self._report = _Report()

    def resume(self, learned: Learned) -> None:
        """Continue from what an earlier worker learned."""
        for head in self._heads:
            version = learned.versions[head.exit_layer]
            if version:
                head.resume(learned.weights[head.exit_layer], version)

    def learned(self) -> Learned:
        """Return the weights that serve now."""
        return Learned(
            versions={head.exit_layer: head.version for head in self._heads},
            weights={head.exit_layer: head.serving for head in self._heads},
        )

    def note_step(self, seconds: float) -> None:
        """Account for a step that took `seconds`; recording during it counts as learning."""
        recorded = self.recorder.take_seconds()
        self._budget.earn(seconds - recorded)
        self._budget.spend(recorded)
        self._report.seconds += recorded
        # Where recording alone takes more than the share, some steps are not recorded.
        is_affordable = self._budget.saved_s > -_MOST_DEBT_S
        self.recorder.is_open = is_affordable and not self.recorder.is_broken

    @torch.inference_mode()
    def learn(self, *, is_idle: bool) -> bool:
        """Do one piece of work if there is any and the budget allows it.

        Args:
            is_idle: Whether no step is waiting; the budget then allows more.

        Returns:
            Whether anything was done.
        """
        if self.recorder.is_broken or not self._budget.allows(is_idle=is_idle):
            return False
        started = self._clock()
        try:
            did_something = next(self._work)
        except Exception:  # a failure of training must not fail a request
            logger.exception("heads learn no more")
            self.recorder.is_broken = True
            return False
        self._wait_for_device()
        seconds = self._clock() - started
        self._budget.spend(seconds)
        self._report.seconds += seconds
        return did_something

    def take_report(self) -> Learning:
        """Return what was learned since the last call."""
        report, self._report = self._report, _Report()
        agreements = [head.agreement for head in self._heads]
        count = len(agreements)
        return Learning(
            num_updates=report.num_updates,
            num_adopted=report.num_adopted,
            num_dropped=report.num_dropped,
            seconds=report.seconds,
            candidate_agreement=sum(each.candidate for each in agreements) / count,
            serving_agreement=sum(each.serving for each in agreements) / count,
            shipped_agreement=sum(each.shipped for each in agreements) / count,
        )

    def _observe(self, row: Row, result: RowResult) -> None:
        """Tell each head's watch whether the token it expected first is the one that came."""
        for guess in row.guesses:
            if isinstance(guess.chance.kind, int) and not guess.path and result.token_ids:
                was_right = guess.token_id == result.token_ids[0]
                self._heads[guess.chance.kind].watch.observe(was_right=was_right)

    def _pieces(self) -> Iterator[bool]:
        """Train without end; yield after every piece, and say whether it did anything."""
        while True:
            for head in self._heads:
                self._note(head.check_acceptance())
            if self._examples.num_written < self._resumes_at:
                yield False
                continue
            self._hold_out()
            num_held_out = self._examples.num_written - self._training_end
            is_trial_due = self._updates_since_trial >= _UPDATES_PER_TRIAL
            if is_trial_due and num_held_out >= _LEAST_HELD_OUT:
                yield from self._trial()
            elif self._training_end and self._updates_since_trial < _MOST_UPDATES:
                yield from self._update()
            else:
                yield False

    def _hold_out(self) -> None:
        """Hold the newest examples out for the next trial, and release older ones for training."""
        num_written = self._examples.num_written
        if num_written >= _FIRST:
            num_held_out = min(_MOST_HELD_OUT, num_written // 2)
            self._training_end = max(self._training_end, num_written - num_held_out)

    def _update(self) -> Iterator[bool]:
        """Change the weights in training once at every exit.

        The update is given up where no example is left that follows another: `_pieces` looks for
        newer ones.
        """
        for head in self._heads:
            num_examples = 0
            while num_examples < _PER_UPDATE:
                runs = self._training_runs()
                if not runs.shape[1]:
                    yield False
                    return
                started = self._clock()
                places = _draw_newer(runs.shape[1], self._piece)
                head.accumulate_gradient(self._examples, runs[:, places])
                num_examples += self._piece
                self._wait_for_device()
                self._fit_piece(self._clock() - started)
                yield True
            head.step()
            self._report.num_updates += 1
            yield True
        self._updates_since_trial += 1

    def _training_runs(self) -> Tensor:
        """Return runs of a random depth to train on, or shorter ones where sequences are short."""
        (depth,) = self._random.choices(_DEPTHS, _DEPTH_WEIGHTS)
        runs = self._examples.runs(0, self._training_end, depth)
        while depth > 1 and not runs.shape[1]:
            depth -= 1
            runs = self._examples.runs(0, self._training_end, depth)
        return runs

    def _fit_piece(self, seconds: float) -> None:
        """Adapt the size of the next piece, so that steps do not wait long for it."""
        if seconds > _LONG_S:
            self._piece = max(_LEAST_PIECE, self._piece // 2)
        elif seconds < _SHORT_S:
            self._piece = min(_MOST_PIECE, self._piece * 2)

    def _trial(self) -> Iterator[bool]:
        """Let the held-out examples decide which weights serve; then train on them too."""
        first, end = self._training_end, self._examples.num_written
        gain = 0.0
        for head in self._heads:
            for depth in _TRIED_DEPTHS:  # each is tried on its share of the examples
                runs_of_depth = self._examples.runs(first, end, depth)
                mine = runs_of_depth[:, depth - 1 :: len(_TRIED_DEPTHS)]
                for runs in mine.split(self._piece, dim=1):
                    if runs.shape[1]:
                        head.evaluate(self._examples, runs)
                        yield True
            change = head.judge()
            self._note(change)
            if change is Change.ADOPTED:
                gain = max(gain, head.agreement.candidate - head.agreement.serving)
            yield True
        self._training_end = end
        self._updates_since_trial = 0
        self._rest_after(gain)

    def _rest_after(self, gain: float) -> None:
        """Pause ever longer after trials that gain little: there is little left to learn."""
        if gain >= _WORTH:
            self._pause = 0
        else:
            self._resumes_at = self._examples.num_written + self._pause
            self._pause = min(max(2 * self._pause, _FIRST_PAUSE), _LONGEST_PAUSE)

    def _note(self, change: Change) -> None:
        if change is Change.NONE:
            return
        self._report.num_adopted += change is Change.ADOPTED
        self._report.num_dropped += change is Change.DROPPED
        self.on_change()

    def _wait_for_device(self) -> None:
        """Wait for a GPU, so that the clock measures its work and not only the launches."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def _draw_newer(count: int, size: int) -> Tensor:
    """Draw `size` indices below `count`, larger ones more often, because traffic changes."""
    from_newest = (torch.rand(size) ** 2 * count).long()
    return count - 1 - from_newest


class _Report:
    """What `take_report` returns, while it is being counted."""

    def __init__(self) -> None:
        self.num_updates = self.num_adopted = self.num_dropped = 0
        self.seconds = 0.0
