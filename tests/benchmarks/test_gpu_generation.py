"""Only the decoding of a generation is timed."""

from pathlib import Path

import pytest
from fake_worker import FakeWorker

from benchmarks.gpu.generation import generate
from engine.config import EngineConfig, ModelConfig, SchedulerConfig
from engine.offline import OfflineEngine

pytestmark = pytest.mark.torch


def test_the_clock_begins_when_every_prompt_has_a_token() -> None:
    """By then the first prompts have several tokens, more in all than there are prompts."""
    config = EngineConfig(
        model=ModelConfig(directory=Path("nowhere")),
        scheduler=SchedulerConfig(max_num_seqs=6, max_num_batched_tokens=12),
    )
    worker = FakeWorker(num_blocks=200, max_draft_tokens=0)
    prompts = [tuple(range(2 + number, 14 + number)) for number in range(6)]
    timed = generate(OfflineEngine(config, worker), prompts, 20, early_exit=False)
    first = next(
        number
        for number, plan in enumerate(worker.plans)
        if all(row.is_decoding for row in plan.rows) and len(plan.rows) == len(prompts)
    )
    late = sum(len(plan.rows) for plan in worker.plans[first + 1 :])
    assert timed.num_timed == late
    assert sum(map(len, timed.token_ids)) == 6 * 20
