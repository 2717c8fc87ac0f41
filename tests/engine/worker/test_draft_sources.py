"""Drafts from both sources through scheduler and worker, with preempted, resumed and mixed rows:
outputs are those of plain decoding.
"""

from pathlib import Path

import pytest
from tiny_model import write_tiny_heads, write_tiny_llama

from engine.config import CacheConfig, EngineConfig, ExitsConfig, ModelConfig, SchedulerConfig
from engine.offline import GenerationResult, OfflineEngine
from engine.request import LOOKED_UP, EarlyExitOptions, GenerationRequest, SamplingParams

pytestmark = pytest.mark.torch

PROMPTS = [
    (7, 8, 9, 10, 11) * 4,
    (3, 3, 3, 3, 3, 3),
    tuple(range(20, 50)) + tuple(range(20, 35)),
    (41,),
]
ROOMY, TIGHT = 64, 14  # blocks of 4 tokens: one longest output needs 13


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_tiny_llama(tmp_path_factory.mktemp("tiny"))
    write_tiny_heads(directory, directory / "exit_heads", [1, 3])
    return directory


def engine_of(directory: Path, num_blocks: int, exits: ExitsConfig) -> OfflineEngine:
    return OfflineEngine(
        EngineConfig(
            model=ModelConfig(
                directory=directory, backend="torch", num_threads=1, max_model_len=52
            ),
            cache=CacheConfig(block_size=4, num_blocks=num_blocks),
            scheduler=SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=24),
            exits=exits,
        )
    )


def generate(
    engine: OfflineEngine, temperature: float, early_exit: EarlyExitOptions
) -> list[GenerationResult]:
    return engine.generate(
        [
            GenerationRequest(
                request_id=str(index),
                prompt_token_ids=prompt,
                sampling=SamplingParams(
                    temperature=temperature,
                    seed=index,
                    max_tokens=52 - len(prompt) if len(prompt) > 20 else 20,
                    ignore_eos=True,
                    num_logprobs=1,
                ),
                early_exit=early_exit,
            )
            for index, prompt in enumerate(PROMPTS)
        ]
    )


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_outputs_are_those_of_plain_decoding(
    directory: Path, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.worker.cost_profile._ROUNDS", 1)
    roomy = engine_of(directory, ROOMY, ExitsConfig(enabled=False))
    plain = generate(roomy, temperature, EarlyExitOptions(enabled=False))
    layers = set()
    for heads in (directory / "exit_heads", None):
        engine = engine_of(directory, TIGHT, ExitsConfig(heads=heads))
        for options in (
            EarlyExitOptions(),
            EarlyExitOptions(threshold=0.0, max_draft_tokens=2),
        ):
            results = generate(engine, temperature, options)
            assert [r.token_ids for r in results] == [r.token_ids for r in plain]
            assert [r.logprobs for r in results] == [r.logprobs for r in plain]
            layers |= {layer for r in results for layer in r.draft_figures.drafted_by_layer}
    assert {LOOKED_UP, 1} <= layers, "both sources have drafted"
