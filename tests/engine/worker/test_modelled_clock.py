"""A worker with a clock that advances by modelled costs counts each part as often as it runs."""

from pathlib import Path

import pytest
from tiny_model import write_tiny_heads, write_tiny_llama

from engine.config import CacheConfig, EngineConfig, ExitsConfig, ModelConfig
from engine.offline import OfflineEngine
from engine.request import EarlyExitOptions, GenerationRequest, SamplingParams
from engine.worker.cost_curve import CostCurve
from engine.worker.cost_model import CostModel
from engine.worker.modelled_clock import ModelledClock
from engine.worker.worker import ModelWorker

pytestmark = pytest.mark.torch

PROMPT = (5, 6, 7, 8)
LENGTH = 9


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    directory = write_tiny_llama(tmp_path / "tiny")
    return EngineConfig(
        model=ModelConfig(directory=directory, backend="torch", num_threads=1),
        cache=CacheConfig(kv_cache_memory_bytes=1 << 20),
        exits=ExitsConfig(heads=write_tiny_heads(directory, tmp_path / "heads", [1])),
        worker="inline",
    )


def decode(
    config: EngineConfig, options: EarlyExitOptions, costs: list[CostCurve]
) -> tuple[tuple[int, ...], float]:
    """Return the output and its seconds, given the costs of segments, evaluation and end."""
    first, second, evaluation, end = costs
    clock = ModelledClock(CostModel([first, second], [evaluation], end))
    engine = OfflineEngine(config, ModelWorker(config, clock=clock))
    sampling = SamplingParams(temperature=0.0, max_tokens=LENGTH, ignore_eos=True)
    request = GenerationRequest(
        request_id="a", prompt_token_ids=PROMPT, sampling=sampling, early_exit=options
    )
    (result,) = engine.generate([request])
    return result.token_ids, clock()


def test_plain_steps_take_their_segments_and_logits(config: EngineConfig) -> None:
    by_tokens = CostCurve([1, 64], [1.0, 64.0])
    _, seconds = decode(config, EarlyExitOptions(enabled=False), [by_tokens] * 4)
    prompt = 2 * len(PROMPT) + 1  # logits of its last token only
    assert seconds == pytest.approx(prompt + 3 * (LENGTH - 1))


def test_with_drafts_every_call_of_every_part_counts(config: EngineConfig) -> None:
    costs = [CostCurve([1], [each]) for each in (1.0, 1e3, 1e6, 1e9)]
    plain, _ = decode(config, EarlyExitOptions(enabled=False), costs)
    always = EarlyExitOptions(threshold=0.0, max_draft_tokens=2, lookup=False)
    ids, seconds = decode(config, always, costs)
    assert ids == plain
    numbers = [round(seconds) // 10**power % 1000 for power in (0, 3, 6, 9)]
    first, second, evaluations, ends = numbers
    assert second == ends <= LENGTH
    assert evaluations > 0
    assert first > second, "drafts enter the first segment while the others wait"
    assert decode(config, always, costs) == (ids, seconds), "the same every time"
