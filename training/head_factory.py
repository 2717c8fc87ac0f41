"""Makes heads from collected states: fitted, loaded or carried over from others, and trained."""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from engine.model.decoder import Decoder
from training.collect import ShardPaths
from training.head_module import HeadModule, feature_scale
from training.progress import ProgressReport
from training.states import LAST, Shards, StateSource
from training.train_head import HeadTrainer, TrainingConfig, carry_over, fit_linear
from training.whole_file import whole_file


class HeadFactory:
    """Makes heads of one model on one reduced vocabulary."""

    def __init__(self, decoder: Decoder, token_ids: Sequence[int], max_bytes: int) -> None:
        """
        Args:
            max_bytes: Most bytes of hidden states that are in memory at once.
        """
        self.token_ids = torch.tensor(token_ids, dtype=torch.int32)
        self.lm_head = lm_head_rows(decoder, self.token_ids)
        self._fingerprint = decoder.fingerprint
        self._max_bytes = max_bytes

    def shards(self, paths: ShardPaths, layer: int) -> Shards:
        """Return the states at an exit layer and at the last layer."""
        return Shards([(shard[LAST], shard[layer]) for shard in paths], self._max_bytes)

    def fitted(self, shards: StateSource, *, reads_previous: bool = True) -> HeadModule:
        """Fit a new head by ridge regression on the first group of shards."""
        sample = next(shards.groups())
        device = self.lm_head.device
        head = HeadModule(
            feature_scale(sample.exit).to(device),
            feature_scale(sample.last).to(device),
            self.lm_head,
        ).to(device)
        fit_linear(head, sample, reads_previous=reads_previous)
        return head

    def loaded(self, directory: Path, layer: int) -> HeadModule:
        """Load a trained head.

        Raises:
            ValueError: if there is none at that layer.
        """
        tensors = load_file(str(directory / "heads.safetensors"))
        if f"exits.{layer}.project" not in tensors:
            raise ValueError(f"--start-from: {directory} has no head at layer {layer}")
        return HeadModule.from_tensors(tensors, layer, self.lm_head)

    def carried(
        self, directory: Path, source: int, there: StateSource, here: StateSource
    ) -> HeadModule:
        """Load a head that was trained at another layer, and turn it into one for this layer.

        Args:
            there: States at the layer `source`.
            here: States of the same positions at this layer.
        """
        head = self.loaded(directory, source)
        carry_over(head, next(there.groups()), next(here.groups()))
        return head

    def trained(
        self,
        name: str,
        shards: StateSource,
        config: TrainingConfig,
        work: Path,
        start: tuple[str, HeadModule] | None = None,
    ) -> HeadModule:
        """Train a head to the end, resuming a killed run after its last complete epoch.

        Args:
            work: Where checkpoints are kept; another model, configuration, vocabulary or set of
                shards has checkpoints of its own.
            start: The name of its origin and a head to train further; None: fit a new one.
        """
        if start is None:
            origin = None
            head = self.fitted(shards, reads_previous=config.reads_previous)
        else:
            origin, head = start
        if config.refinement_size and not head.refinement_size:
            head.refine(config.refinement_size, config.seed)
        trainer = HeadTrainer(head, shards, config)
        facts: list[Any] = [asdict(config), shards.names, self.token_ids.tolist()]
        facts += [origin, self._fingerprint]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
        checkpoint = work / f"{name}-{key}.pt"
        if checkpoint.is_file():
            trainer.load_state(torch.load(checkpoint, weights_only=True))
        with ProgressReport(name, 0, "steps") as report:

            def on_step(done: int, total: int, loss: float) -> None:
                report.total = total
                report.update(done, f"loss {loss:.3f}")

            while not trainer.is_done:
                trainer.run_epoch(on_step)
                state = io.BytesIO()  # to a file that cannot be written torch fails obscurely
                torch.save(trainer.state(), state)
                with whole_file(checkpoint) as partial:
                    partial.write_bytes(state.getbuffer())
        return head


def lm_head_rows(decoder: Decoder, token_ids: Tensor) -> Tensor:
    """Return the LM head's rows [V', E] with the final norm's weight folded in."""
    rows = decoder.lm_head_rows(token_ids.to(decoder.ops.device))
    return rows.float() * decoder.final_norm.float()
