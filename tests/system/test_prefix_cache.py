"""Cached prefixes give the same bits as computing them anew, on the default model."""

from dataclasses import replace

import pytest
from default_model import default_model_directory

from engine.checkpoint import find_heads
from engine.config import EngineConfig, ExitsConfig, ModelConfig, SchedulerConfig
from engine.offline import GenerationResult, OfflineEngine
from engine.request import EarlyExitOptions, GenerationRequest, SamplingParams

pytestmark = [pytest.mark.torch, pytest.mark.model, pytest.mark.slow]

LENGTHS = (31, 32, 33, 48)  # around the edges of blocks of 16
PROMPT = [
    1,
    9690,
    198,
    2683,
    359,
    253,
    5356,
    5646,
    11173,
    3365,
    3511,
    308,
    34519,
    28,
    7018,
    411,
] * 3


@pytest.fixture(scope="module")
def engine() -> OfflineEngine:
    """An engine that runs requests one by one, so that each finds the blocks of earlier ones."""
    directory = default_model_directory()
    heads = find_heads("smollm2-135m-instruct", directory)
    assert heads is not None
    return OfflineEngine(
        EngineConfig(
            model=ModelConfig(directory=directory, device="cpu"),
            scheduler=SchedulerConfig(max_num_seqs=1, prefix_caching=True),
            exits=ExitsConfig(heads=heads),
        )
    )


def ask(number: int, prompt: list[int], temperature: float, *, is_early: bool, salt: str) -> object:
    return GenerationRequest(
        request_id=str(number),
        prompt_token_ids=tuple(prompt),
        sampling=SamplingParams(
            temperature=temperature, seed=7, max_tokens=8, ignore_eos=True, num_logprobs=2
        ),
        early_exit=EarlyExitOptions(enabled=is_early, threshold=0.3 if is_early else None),
        cache_salt=salt,
    )


def bits(result: GenerationResult) -> object:
    return result.token_ids, result.logprobs


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("is_early", [False, True])
def test_warm_equals_cold(engine: OfflineEngine, temperature: float, is_early: bool) -> None:
    """The cached KV is written by prefills first, and then by decoding and verification too."""
    requests = []
    for length in LENGTHS:
        salt = f"of its own {length}"  # the first of each pair finds nothing
        one = ask(len(requests), PROMPT[:length], temperature, is_early=is_early, salt=salt)
        requests += [one, replace(one, request_id=f"{length} again")]  # type: ignore[type-var]
    cold_and_warm = engine.generate(requests)
    pairs = zip(LENGTHS, cold_and_warm[::2], cold_and_warm[1::2], strict=True)
    for length, cold, warm in pairs:
        assert bits(warm) == bits(cold)
        assert cold.num_cached_tokens == 0
        assert warm.num_cached_tokens == (length - 1) // 16 * 16
    # The next turn of each conversation, with and without the cached blocks of the turn before.
    turns = []
    for length, result in zip(LENGTHS, cold_and_warm[::2], strict=True):
        prompt = [*PROMPT[:length], *result.token_ids, 198, 28, 7018]
        for salt in ("fresh", "shared"):
            number = len(turns)
            turns.append(ask(number, prompt, temperature, is_early=is_early, salt=salt))
        before = ask(len(turns), PROMPT[:length], temperature, is_early=is_early, salt="shared")
        turns.insert(-1, before)
    answers = engine.generate(turns)
    for fresh, before, shared in zip(answers[::3], answers[1::3], answers[2::3], strict=True):
        assert bits(shared) == bits(fresh)
        assert before.token_ids
        assert shared.num_cached_tokens >= 32
