"""The shipped heads on the default model change no output, in batches and alone.

This is a small version of `adadecode bench lossless` (100 prompts, 128 tokens).
"""

from pathlib import Path

import pytest
from default_model import ALIAS, default_model_directory

from benchmarks.prompts import choose_prompts, encode_prompts
from engine.checkpoint import find_heads
from engine.config import EngineConfig, ExitsConfig, ModelConfig, SchedulerConfig
from engine.offline import GenerationResult, OfflineEngine
from engine.request import EarlyExitOptions, GenerationRequest, SamplingParams

pytestmark = [pytest.mark.torch, pytest.mark.model]

NUM_TOKENS = 20


@pytest.fixture(scope="module")
def directory() -> Path:
    return default_model_directory()


@pytest.fixture(scope="module")
def engine(directory: Path) -> OfflineEngine:
    heads = find_heads(ALIAS, directory)
    assert heads is not None, "heads for the default model are part of the repository"
    return OfflineEngine(
        EngineConfig(
            model=ModelConfig(directory=directory),
            scheduler=SchedulerConfig(max_num_seqs=6),
            exits=ExitsConfig(heads=heads),
        )
    )


@pytest.fixture(scope="module")
def prompts(directory: Path) -> list[tuple[int, ...]]:
    return [entry.token_ids for entry in encode_prompts(choose_prompts(None, 1), directory)]


def generate(
    engine: OfflineEngine,
    prompts: list[tuple[int, ...]],
    temperature: float,
    early_exit: EarlyExitOptions,
) -> list[GenerationResult]:
    return engine.generate(
        [
            GenerationRequest(
                request_id=str(index),
                prompt_token_ids=prompt,
                sampling=SamplingParams(
                    temperature=temperature,
                    seed=index,
                    max_tokens=NUM_TOKENS,
                    ignore_eos=True,
                    num_logprobs=1,
                ),
                early_exit=early_exit,
            )
            for index, prompt in enumerate(prompts)
        ]
    )


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_and_logprobs_are_those_of_plain_decoding(
    engine: OfflineEngine, prompts: list[tuple[int, ...]], temperature: float
) -> None:
    plain = generate(engine, prompts, temperature, EarlyExitOptions(enabled=False))
    for early_exit in (EarlyExitOptions(), EarlyExitOptions(threshold=0.2, max_draft_tokens=8)):
        batched = generate(engine, prompts, temperature, early_exit)
        assert [r.token_ids for r in batched] == [r.token_ids for r in plain]
        assert [r.logprobs for r in batched] == [r.logprobs for r in plain]
    drafted = sum(result.draft_figures.num_draft_tokens for result in batched)
    accepted = sum(result.draft_figures.num_accepted_tokens for result in batched)
    assert 0 < accepted < drafted, "trained heads are often right and sometimes wrong"
    alone = generate(engine, prompts[:1], temperature, EarlyExitOptions())
    assert alone[0].token_ids == plain[0].token_ids
