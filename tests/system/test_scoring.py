"""Scoring a text gives the same bits as generating it, whatever else runs."""

from dataclasses import replace

import pytest
from default_model import default_model_directory

from engine.checkpoint import find_heads
from engine.config import EngineConfig, ExitsConfig, ModelConfig, SchedulerConfig
from engine.offline import OfflineEngine
from engine.request import EarlyExitOptions, GenerationRequest, SamplingParams
from engine.worker.worker import ModelWorker

pytestmark = [pytest.mark.torch, pytest.mark.model, pytest.mark.slow]

PROMPTS = ([1, 9690, 198, 2683, 359, 253, 5356], [504, 3575, 282, 4649, 314] * 9, [198])


@pytest.fixture(scope="module")
def config() -> EngineConfig:
    directory = default_model_directory()
    heads = find_heads("smollm2-135m-instruct", directory)
    assert heads is not None
    return EngineConfig(
        model=ModelConfig(directory=directory, device="cpu"), exits=ExitsConfig(heads=heads)
    )


@pytest.fixture(scope="module")
def worker(config: EngineConfig) -> ModelWorker:
    return ModelWorker(config)


def engine_of(config: EngineConfig, worker: ModelWorker, **scheduler: int) -> OfflineEngine:
    return OfflineEngine(replace(config, scheduler=SchedulerConfig(**scheduler)), worker)


def asked(number: int, prompt: list[int], *, is_early: bool, **sampling: int) -> GenerationRequest:
    return GenerationRequest(
        request_id=str(number),
        prompt_token_ids=tuple(prompt),
        sampling=SamplingParams(temperature=0.8, seed=number, ignore_eos=True, **sampling),
        early_exit=EarlyExitOptions(enabled=is_early, threshold=0.3 if is_early else None),
        pooling="mean" if number % 2 else "last",
    )


def test_scores_are_the_bits_of_generating(config: EngineConfig, worker: ModelWorker) -> None:
    whole = engine_of(config, worker)
    in_chunks = engine_of(config, worker, max_num_batched_tokens=5)
    generated = whole.generate(
        [
            asked(i, prompt, is_early=True, max_tokens=10, num_logprobs=3, num_prompt_logprobs=3)
            for i, prompt in enumerate(PROMPTS)
        ]
    )
    assert any(result.draft_figures.num_accepted_tokens for result in generated)
    plain = whole.generate(
        [
            asked(i, prompt, is_early=False, max_tokens=1, num_prompt_logprobs=3)
            for i, prompt in enumerate(PROMPTS)
        ]
    )
    texts = [
        [*prompt, *result.token_ids] for prompt, result in zip(PROMPTS, generated, strict=True)
    ]
    scored = in_chunks.generate(
        [
            asked(i, text, is_early=True, max_tokens=0, num_prompt_logprobs=3)
            for i, text in enumerate(texts)
        ]
    )
    for one, other, score in zip(generated, plain, scored, strict=True):
        assert one.prompt_logprobs == other.prompt_logprobs
        assert one.embedding == other.embedding
        assert score.prompt_logprobs == (*one.prompt_logprobs, *one.logprobs)
        assert score.token_ids == ()


def test_an_embedding_does_not_depend_on_its_company(
    config: EngineConfig, worker: ModelWorker
) -> None:
    requests = [asked(i, text, is_early=True, max_tokens=0) for i, text in enumerate(PROMPTS)]
    together = engine_of(config, worker, max_num_batched_tokens=9).generate(requests)
    for request, result in zip(requests, together, strict=True):
        (alone,) = engine_of(config, worker).generate([request])
        assert result.embedding == alone.embedding
        assert alone.embedding is not None
        assert len(alone.embedding) == 576
