"""Heads that learn, with what they keep on disk: the worker's view of learning while serving."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from engine.errors import ModelLoadError
from engine.model.decoder import Decoder
from engine.model.exit_head import ExitHeads
from engine.plan import Learning
from engine.worker.learning.checkpoints import Checkpoints
from engine.worker.learning.learner import HeadLearner
from engine.worker.learning.recorder import Recorder

logger = logging.getLogger(__name__)


class School:
    """A `HeadLearner` and its `Checkpoints`."""

    def __init__(
        self,
        heads: ExitHeads,
        decoder: Decoder,
        shipped: Path,
        directory: Path,
        share: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Go on from the newest checkpoint, if there is one.

        Args:
            shipped: Where the heads were loaded from.
            directory: Checkpoints go to a directory in it, named after the model's weights.
            share: Of the worker's time.
        clock: In seconds, for what learning takes.

        Raises:
            ModelLoadError: if nothing can be kept there.
        """
        mine = directory / decoder.fingerprint
        try:
            mine.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ModelLoadError(f"--learn-heads-dir: {error}") from error
        self._checkpoints = Checkpoints(mine, shipped, decoder)
        rows = decoder.lm_head_rows(heads.token_ids)
        self._learner = HeadLearner(
            heads,
            self._checkpoints.shipped,
            rows,
            share,
            clock,
            refinements=self._checkpoints.refinements,
        )
        self._learner.on_change = self._save
        learned = self._checkpoints.newest()
        if learned is not None:
            self._learner.resume(learned)

    @property
    def learner(self) -> HeadLearner:
        """Who learns."""
        return self._learner

    @property
    def recorder(self) -> Recorder:
        """What the decode step tells of itself."""
        return self._learner.recorder

    def note_step(self, seconds: float) -> Learning:
        """A step took so long.

        Returns:
            What was learned since the one before.
        """
        self._checkpoints.flush()
        self._learner.note_step(seconds)
        return self._learner.take_news()

    def learn(self, *, is_idle: bool) -> bool:
        """See `HeadLearner.learn`."""
        return self._learner.learn(is_idle=is_idle)

    def close(self) -> None:
        """Wait until everything is kept."""
        self._checkpoints.close()

    def _save(self) -> None:
        self._checkpoints.save(self._learner.learned())
