"""Structures through scheduler and worker, with preemption, prefix caching and ends by a token:
every output is that of plain decoding, to the bits of its log-probabilities.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_model import VOCAB, load_tiny, policy_drafter, random_heads, write_tiny_llama

from engine.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from engine.model.ops.torch_ops import TorchOps
from engine.offline import GenerationResult, OfflineEngine
from engine.request import (
    EarlyExitOptions,
    FinishReason,
    GenerationRequest,
    SamplingParams,
    Structure,
)
from engine.worker import grammars
from engine.worker.worker import ModelWorker

pytestmark = pytest.mark.torch

FIRST = 30  # the character code of token 0, which is the end of sequence
WORDS = Structure(kind="regex", source=r"([A-Z][a-z]{1,3} ){3,5}!")
NUMBERS = Structure(kind="json_schema", source='{"type": "array", "items": {"type": "integer"}}')
PROMPT = tuple(range(5, 45))


@pytest.fixture(autouse=True)
def vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every token of the tiny model a character."""
    characters = [b"", *(bytes([FIRST + i]) for i in range(1, VOCAB))]
    monkeypatch.setattr(grammars, "load_vocabulary", lambda *_: characters)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    directory = write_tiny_llama(tmp_path_factory.mktemp("tiny"))
    return EngineConfig(
        model=ModelConfig(directory=directory, backend="torch", num_threads=1),
        scheduler=SchedulerConfig(max_num_batched_tokens=24),
        cache=CacheConfig(block_size=4, num_blocks=256),
    )


def make_worker(config: EngineConfig, directory: Path) -> ModelWorker:
    """Return a worker whose heads always draft and are mostly wrong."""
    decoder = load_tiny(directory, TorchOps("cpu"))
    heads = random_heads(decoder, [1, 3], VOCAB)
    return ModelWorker(config, drafter=policy_drafter(decoder, heads, threshold=0.0))


def requests(*, early_exit: bool) -> list[GenerationRequest]:
    sampling = SamplingParams(temperature=1.2, max_tokens=26, num_logprobs=2, logit_bias={65: 3.0})
    return [
        GenerationRequest(
            request_id=str(index),
            prompt_token_ids=PROMPT[: 20 + 4 * (index % 3)],
            sampling=replace(sampling, structure=structure, seed=index),
            early_exit=EarlyExitOptions(enabled=early_exit),
        )
        for index, structure in enumerate([WORDS, None, NUMBERS, WORDS])
    ]


def said(results: list[GenerationResult]) -> list[object]:
    return [(r.token_ids, r.logprobs, r.finish_reason) for r in results]


def test_whatever_happens_on_the_way_outputs_are_those_of_plain_decoding(
    config: EngineConfig,
) -> None:
    directory = config.model.directory
    alone = OfflineEngine(config, make_worker(config, directory))
    plain = [alone.generate([request])[0] for request in requests(early_exit=False)]
    for result, request in zip(plain, requests(early_exit=False), strict=True):
        if request.sampling.structure == WORDS and result.finish_reason is FinishReason.STOP:
            text = bytes(FIRST + token for token in result.token_ids[:-1]).decode()
            assert re.fullmatch(WORDS.source, text)
    # 25 blocks hold at most two of the four rows at full length, so that some are preempted.
    tight = replace(config, cache=replace(config.cache, num_blocks=25))
    engine = OfflineEngine(tight, make_worker(tight, directory))
    for _ in range(2):  # the second time, the prompts are in the prefix cache
        results = engine.generate(requests(early_exit=True))
        assert said(results) == said(plain)
    assert sum(result.draft_figures.num_draft_tokens for result in results) > 20


@pytest.mark.parametrize("early_exit", [True, False])
@pytest.mark.parametrize(
    ("kind", "source", "text"),
    [
        ("regex", "ab{2}", "abb"),
        ("regex", "a|ab", "ab"),
        ("regex", "ab*", "abbbbbbb"),
        ("json_schema", '{"const": 17}', "17"),
        ("json_schema", '{"type": "object", "maxProperties": 0}', "{}"),
        ("structural_tag", '{"type": "const_string", "value": "yes"}', "yes"),
    ],
)
def test_the_end_is_put_off_only_while_anything_else_may_follow(
    config: EngineConfig, kind: Any, source: str, text: str, early_exit: bool
) -> None:
    for wish in ({"min_tokens": 8}, {"ignore_eos": True}):
        request = GenerationRequest(
            request_id="r",
            prompt_token_ids=PROMPT,
            sampling=SamplingParams(
                temperature=0.0, max_tokens=8, structure=Structure(kind=kind, source=source), **wish
            ),
            early_exit=EarlyExitOptions(enabled=early_exit),
        )
        worker = make_worker(config, config.model.directory)
        (result,) = OfflineEngine(config, worker).generate([request])
        said = bytes(FIRST + token for token in result.token_ids if token).decode()
        assert said.replace(" ", "") == text, wish


@pytest.mark.parametrize(
    ("end", "reason", "length"),
    [("", FinishReason.DEAD_END, 3), ("c", FinishReason.STOP, 3), ("d", FinishReason.DEAD_END, 3)],
)
def test_a_dead_end_after_accepted_drafts_rolls_none_of_them_back(
    config: EngineConfig, end: str, reason: FinishReason, length: int
) -> None:
    def ids(text: str) -> tuple[int, ...]:
        return tuple(ord(character) - FIRST for character in text)

    sampling = SamplingParams(
        temperature=0.0,
        max_tokens=8,
        num_logprobs=1,
        structure=Structure(kind="regex", source="abcd"),
        allowed_token_ids=ids("abc"),
        stop_token_ids=ids(end),
    )
    results = [
        OfflineEngine(config, make_worker(config, config.model.directory)).generate(
            [
                GenerationRequest(
                    request_id="repeats",
                    prompt_token_ids=ids("zzabcdabcdabcd"),
                    sampling=sampling,
                    early_exit=EarlyExitOptions(enabled=early_exit),
                )
            ]
        )
        for early_exit in (False, True)
    ]
    assert said(results[1]) == said(results[0])
    assert results[1][0].draft_figures.num_draft_tokens > 0
    assert results[1][0].finish_reason is reason
    assert len(results[1][0].token_ids) == length


@pytest.mark.parametrize("early_exit", [False, True])
def test_what_leaves_no_token_is_a_dead_end_and_disturbs_nobody(
    config: EngineConfig, early_exit: bool
) -> None:
    engine = OfflineEngine(config, make_worker(config, config.model.directory))

    def asked(name: str, text: str, pattern: str) -> GenerationRequest:
        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=8,
            structure=Structure(kind="regex", source=pattern),
            allowed_token_ids=tuple(ord(character) - FIRST for character in text),
        )
        exits = EarlyExitOptions(enabled=early_exit)
        return GenerationRequest(
            request_id=name, prompt_token_ids=PROMPT[:8], sampling=sampling, early_exit=exits
        )

    results = engine.generate(
        [asked("dead", "ab", "abc"), asked("ends", "ab", "ab[0-9]*"), asked("first", "x", "ab")]
    )

    assert [each.finish_reason for each in results] == [
        FinishReason.DEAD_END,
        FinishReason.STOP,
        FinishReason.DEAD_END,
    ]
    assert bytes(FIRST + token for token in results[1].token_ids[:-1]) == b"ab"
    assert results[0].error is not None
    assert "no token" in results[0].error
