"""Heads that change while sequences run change neither a token nor a bit of a logprob.

Nor does a new worker in the middle of them, which continues from what the previous one learned.
"""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_worker import make_request
from learning import change_heads_at_every_trial
from tiny_model import write_tiny_heads, write_tiny_llama

from engine.config import CacheConfig, EngineConfig, ExitsConfig, ModelConfig, SchedulerConfig
from engine.errors import WorkerLost
from engine.limits import ModelLimits
from engine.model.exit_head import HeadWeights
from engine.model.ops.native_ops import NativeOps
from engine.request import GenerationRequest, TokenLogprobs
from engine.scheduler import Scheduler
from engine.worker.learning.head_versions import Change
from engine.worker.worker import ModelWorker

pytestmark = pytest.mark.torch

NUM_TOKENS = 40
BACKEND = "torch" if NativeOps.unavailable_reason() else "native"
Output = tuple[list[int], list[TokenLogprobs]]


@pytest.fixture(scope="module")
def exits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write a model and random heads for it."""
    root = tmp_path_factory.mktemp("learning")
    model = write_tiny_llama(root / "model")
    return model, write_tiny_heads(model, root / "heads", [1, 3], refinement_size=32)


class Run:
    """Runs requests to their end, with new workers after given numbers of adopted heads."""

    def __init__(self, config: EngineConfig, restarts: tuple[int, ...] = ()) -> None:
        self.num_adopted = self.num_preempted = self.num_drafts = 0
        self.first_versions: list[int] = []  # the newest version that each worker starts with
        self._config = config
        self._restarts = restarts
        self._worker = self._start()
        self._scheduler = Scheduler(config.scheduler, ModelLimits.of(self._worker.info))

    def outputs(self, requests: list[GenerationRequest]) -> list[Output]:
        sequences = [self._scheduler.add(request) for request in requests]
        logprobs: dict[int, list[TokenLogprobs]] = defaultdict(list)
        while (plan := self._scheduler.schedule()) is not None:
            if self._restarts and self.num_adopted >= self._restarts[0]:
                self._restarts = self._restarts[1:]
                self._worker.close()
                self._scheduler.lose_worker(plan, WorkerLost("killed"))
                self._worker = self._start()
                continue
            result = self._worker.execute(plan)
            if result.learning is not None:
                self.num_adopted += result.learning.num_adopted
            self.num_drafts += sum(len(row.drafts) for row in result.rows)
            for item in self._scheduler.commit(plan, result):
                kept = item.result.logprobs[: item.num_new_tokens]
                logprobs[item.sequence.sequence_id] += kept
            self._worker.rest(is_idle=True)
            if plan.step_id % 5 == 0:
                self._change_heads()
        self._worker.close()
        self.num_preempted = self._scheduler.num_preemptions
        return [
            (sequence.token_ids[sequence.num_prompt_tokens :], logprobs[sequence.sequence_id])
            for sequence in sequences
        ]

    @torch.inference_mode()
    def _change_heads(self) -> None:
        """Flip the heads' matrices, whether they have learned anything or not."""
        training = self._worker._online_training
        for head in training._trainer._heads if training is not None else ():
            upside_down = HeadWeights(
                project=head.serving.project.flip(0),
                project_previous=head.serving.project_previous,
                other=head.serving.other,
            )
            head._adopt(upside_down, 0)
            training._trainer._note(Change.ADOPTED)

    def _start(self) -> ModelWorker:
        worker = ModelWorker(self._config)
        training = worker._online_training
        if training is not None:
            versions = training._trainer.learned().versions
            self.first_versions.append(max(versions.values()))
        return worker


def config_of(model: Path, heads: Path, directory: Path) -> EngineConfig:
    return EngineConfig(
        model=ModelConfig(directory=model, backend=BACKEND, num_threads=1),
        # Too few blocks for all requests at once, so that some are preempted.
        cache=CacheConfig(block_size=16, num_blocks=10),
        scheduler=SchedulerConfig(max_num_seqs=4),
        exits=ExitsConfig(
            heads=heads,
            threshold=0.1,
            lookup=False,
            learn=True,
            learn_share=0.9,
            learn_directory=directory,
        ),
    )


def test_changing_heads_change_nothing(
    exits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_heads_at_every_trial(monkeypatch)
    config = config_of(*exits, tmp_path)
    requests = [
        make_request(
            i,
            temperature=0.7 * (i % 2),
            seed=i,
            max_tokens=NUM_TOKENS,
            ignore_eos=True,
            num_logprobs=1,
        )
        for i in range(4)
    ]
    plain = Run(replace(config, exits=ExitsConfig(enabled=False))).outputs(requests)

    learning = Run(config, restarts=(4, 8))
    outputs = learning.outputs(requests)

    assert outputs == plain
    assert learning.num_adopted > 1, "heads that stay as they are prove nothing"
    assert learning.num_drafts > 0
    assert learning.num_preempted > 0
    first, second, third = learning.first_versions
    assert first == 0 < second <= third, "a new worker goes on with what was learned"
