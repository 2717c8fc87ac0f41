"""Online training of exit heads, checkpoints included, as the worker sees it."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from engine.errors import ModelLoadError
from engine.model.decoder import Decoder
from engine.model.exit_head import ExitHeads
from engine.plan import Learning
from engine.worker.learning.checkpoints import Checkpoints
from engine.worker.learning.online_trainer import OnlineTrainer
from engine.worker.learning.recorder import Recorder

logger = logging.getLogger(__name__)


class OnlineTraining:
    """An `OnlineTrainer` whose results are kept in `Checkpoints`."""

    def __init__(
        self,
        heads: ExitHeads,
        decoder: Decoder,
        shipped: Path,
        directory: Path,
        share: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Continue from the newest checkpoint, if there is one.

        Args:
            heads: The heads that serve.
            decoder: The model that they belong to.
            shipped: The directory that the heads were loaded from.
            directory: Checkpoints go to a subdirectory named after the model's fingerprint.
            share: Share of the worker's time that learning may take.
            clock: Returns seconds; measures the time that learning takes.

        Raises:
            ModelLoadError: if the checkpoint directory cannot be created.
        """
        mine = directory / decoder.fingerprint
        try:
            mine.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ModelLoadError(f"--learn-heads-dir: {error}") from error
        self._checkpoints = Checkpoints(mine, shipped, decoder)
        rows = decoder.lm_head_rows(heads.token_ids)
        self._trainer = OnlineTrainer(
            heads,
            self._checkpoints.shipped,
            rows,
            share,
            clock,
            refinements=self._checkpoints.refinements,
        )
        self._trainer.on_change = self._save
        learned = self._checkpoints.newest()
        if learned is not None:
            self._trainer.resume(learned)

    @property
    def recorder(self) -> Recorder:
        """The recorder that the decode step reports to."""
        return self._trainer.recorder

    def note_step(self, seconds: float) -> Learning:
        """Account for a step that took `seconds`; return what was learned since the last call."""
        self._checkpoints.flush()
        self._trainer.note_step(seconds)
        return self._trainer.take_report()

    def learn(self, *, is_idle: bool) -> bool:
        """See `OnlineTrainer.learn`."""
        return self._trainer.learn(is_idle=is_idle)

    def close(self) -> None:
        """Wait until everything is saved."""
        self._checkpoints.close()

    def _save(self) -> None:
        self._checkpoints.save(self._trainer.learned())
