"""Passes launched ahead of their plan give the same tokens, and few are launched in vain.

On a CPU a graph is simulated by calling again; on a GPU these are CUDA graphs.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from call_again import CallAgain
from cuda_backend import cuda_ops, needs_gpu, needs_kernels
from fake_worker import make_request
from tiny_model import VOCAB, load_tiny, write_tiny_heads, write_tiny_llama
from torch import Tensor

from benchmarks.scripted import ScriptedDrafter
from engine.config import CacheConfig, EngineConfig, ExitsConfig, ModelConfig, SchedulerConfig
from engine.model.decoder import Decoder
from engine.model.ops.interface import Ops
from engine.model.ops.torch_ops import TorchOps
from engine.offline import GenerationResult, OfflineEngine
from engine.request import EarlyExitOptions, FinishReason, GenerationRequest
from engine.worker.drafter import Drafter
from engine.worker.drafting_switch import DraftingSwitch
from engine.worker.row import Row
from engine.worker.run_ahead import RunAhead
from engine.worker.segment_runner import NewestTokens
from engine.worker.step_estimate import StepEstimate
from engine.worker.worker import ModelWorker

pytestmark = pytest.mark.torch

BLOCK = 4
SAMPLINGS: dict[str, dict[str, object]] = {
    "greedy": {},
    "sampled": {"temperature": 0.9},
    "processed": {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.2, "min_tokens": 6},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(
    scope="module",
    params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu, needs_kernels])],
)
def ops(request: pytest.FixtureRequest) -> Ops:
    return TorchOps("cpu") if request.param == "cpu" else cuda_ops(torch.bfloat16)


@pytest.fixture(scope="module")
def decoder(directory: Path, ops: Ops) -> Decoder:
    return load_tiny(directory, ops)


@pytest.fixture
def config(directory: Path, ops: Ops) -> EngineConfig:
    return EngineConfig(
        model=ModelConfig(directory=directory, device=ops.device.type, num_threads=1),
        cache=CacheConfig(kv_cache_memory_bytes=1 << 20, block_size=BLOCK),
        scheduler=SchedulerConfig(max_num_seqs=3),
        exits=ExitsConfig(enabled=False),
    )


class Launches:
    """Counts passes launched ahead and those that were taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_launched = self.num_taken = 0
        launch, take = RunAhead.launch, RunAhead.take

        def launched(ahead: RunAhead, states: Sequence[object], tokens: NewestTokens) -> None:
            self.num_launched += 1
            launch(ahead, states, tokens)  # type: ignore[arg-type]

        def taken(ahead: RunAhead, *args: object) -> Tensor | None:
            hidden = take(ahead, *args)  # type: ignore[arg-type]
            self.num_taken += hidden is not None
            return hidden

        monkeypatch.setattr(RunAhead, "launch", launched)
        monkeypatch.setattr(RunAhead, "take", taken)

    @property
    def num_in_vain(self) -> int:
        return self.num_launched - self.num_taken


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    return Launches(monkeypatch)


def engine_of(
    config: EngineConfig, decoder: Decoder, drafter: Drafter | None = None, *, graphs: bool = True
) -> OfflineEngine:
    if decoder.ops.device.type == "cuda":
        config = replace(config, model=replace(config.model, enforce_eager=not graphs))
        graphs = False  # the worker captures them by itself
    worker = ModelWorker(
        config, decoder=decoder, drafter=drafter, capture=CallAgain() if graphs else None
    )
    return OfflineEngine(config, worker)


def tokens_of(results: Sequence[GenerationResult]) -> list[tuple[int, ...]]:
    return [result.token_ids for result in results]


def mixed_requests(**sampling: object) -> list[GenerationRequest]:
    """More requests than run at once, of different lengths, so that rows come and go."""
    options: dict[str, object] = {"ignore_eos": True} | sampling
    return [
        make_request(number, 3 + number * 5 % 11, **{"max_tokens": 9 + number * 7 % 23} | options)
        for number in range(8)
    ]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_no_token_changes_while_rows_come_and_go(
    config: EngineConfig, decoder: Decoder, launches: Launches, sampling: str
) -> None:
    requests = mixed_requests(**SAMPLINGS[sampling])
    expected = engine_of(config, decoder, graphs=False).generate(requests)
    assert launches.num_launched == 0
    assert tokens_of(engine_of(config, decoder).generate(requests)) == tokens_of(expected)
    assert launches.num_taken > 20


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_no_token_changes_where_tokens_end_rows(
    config: EngineConfig, decoder: Decoder, launches: Launches, sampling: str
) -> None:
    options = SAMPLINGS[sampling]
    plain = engine_of(config, decoder, graphs=False)
    whole = plain.generate(mixed_requests(**options))
    stops = sorted({result.token_ids[len(result.token_ids) // 2] for result in whole})
    requests = mixed_requests(**options | {"stop_token_ids": stops})
    expected = plain.generate(requests)
    assert any(result.finish_reason is FinishReason.STOP for result in expected)
    got = engine_of(config, decoder).generate(requests)
    assert tokens_of(got) == tokens_of(expected)
    assert [r.finish_reason for r in got] == [r.finish_reason for r in expected]


def test_no_token_changes_where_rows_give_way(
    config: EngineConfig, decoder: Decoder, launches: Launches
) -> None:
    small = replace(config, cache=replace(config.cache, num_blocks=14))
    requests = mixed_requests(temperature=0.7)
    expected = tokens_of(engine_of(config, decoder, graphs=False).generate(requests))
    results = engine_of(small, decoder).generate(requests)
    assert tokens_of(results) == expected
    assert sum(result.num_preemptions for result in results) > 0
    assert launches.num_taken > 0


def test_a_stream_that_ends_by_length_wastes_nothing(
    config: EngineConfig, decoder: Decoder, launches: Launches
) -> None:
    request = make_request(0, max_tokens=40, ignore_eos=True)
    engine_of(config, decoder).generate([request])
    # The first token is the prompt's; the second's pass waits for it; all others run ahead.
    assert (launches.num_launched, launches.num_in_vain) == (38, 0)


def test_passes_are_rarely_launched_in_vain_however_often_rows_end(
    config: EngineConfig, decoder: Decoder, launches: Launches
) -> None:
    engine = engine_of(config, decoder)
    token = engine.generate([make_request(0, max_tokens=4, ignore_eos=True)])[0].token_ids[3]
    ended = make_request(0, max_tokens=40, stop_token_ids=[token])
    for _ in range(40):  # four steps each, of which the last cannot be predicted from a length
        engine.generate([ended])
    assert 1 <= launches.num_in_vain <= 3 + 40 * 4 / 64


def test_rows_with_log_probabilities_wait(
    config: EngineConfig, decoder: Decoder, launches: Launches
) -> None:
    requests = mixed_requests(num_logprobs=2)
    expected = engine_of(config, decoder, graphs=False).generate(requests)
    got = engine_of(config, decoder).generate(requests)
    assert tokens_of(got) == tokens_of(expected)
    assert launches.num_launched == 0


class Moody(ScriptedDrafter):
    """Drafts in two steps of five, and sometimes mispredicts whether the next one drafts."""

    step = 0

    def begin(self, rows: Sequence[Row], estimate: StepEstimate) -> bool:
        """See `Drafter.begin`."""
        self.step += 1
        return self.step % 5 < 2 and super().begin(rows, estimate)

    def may_draft_next(self, rows: Sequence[Row]) -> bool:
        """See `Drafter.may_draft_next`."""
        return self.step % 3 == 0


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_drafts_after_a_pass_in_vain_change_no_token(
    config: EngineConfig,
    decoder: Decoder,
    launches: Launches,
    monkeypatch: pytest.MonkeyPatch,
    sampling: str,
) -> None:
    monkeypatch.setattr(RunAhead, "is_allowed", True)
    requests = mixed_requests(**SAMPLINGS[sampling])
    plain = tokens_of(engine_of(config, decoder, graphs=False).generate(requests))
    prompts = [request.prompt_token_ids for request in requests]
    outputs = {p: p + ids for p, ids in zip(prompts, plain, strict=True)}
    drafter = Moody([2, 4], outputs, "sometimes", VOCAB)
    results = engine_of(config, decoder, drafter).generate(requests)
    assert tokens_of(results) == plain
    assert sum(result.draft_figures.num_accepted_tokens for result in results) > 0
    assert min(launches.num_in_vain, launches.num_taken) > 2


@pytest.mark.parametrize("lookup", [False, True])
def test_real_heads_and_a_policy_that_pauses_change_no_token(
    config: EngineConfig,
    decoder: Decoder,
    launches: Launches,
    monkeypatch: pytest.MonkeyPatch,
    directory: Path,
    tmp_path: Path,
    lookup: bool,
) -> None:
    monkeypatch.setattr(ModelWorker, "_is_queued", True)
    heads = write_tiny_heads(directory, tmp_path / "heads", [2, 4])
    drafting = replace(config, exits=ExitsConfig(heads=heads, lookup=lookup))
    requests = mixed_requests(temperature=0.5, max_tokens=60)
    few = [
        replace(request, early_exit=EarlyExitOptions(threshold=0.3)) if number % 4 == 0 else request
        for number, request in enumerate(requests)
    ]
    expected = tokens_of(engine_of(config, decoder, graphs=False).generate(requests))
    engine = engine_of(drafting, decoder)
    for asked in (requests, few, requests):
        assert tokens_of(engine.generate(asked)) == expected
    assert launches.num_taken > 0


def test_what_a_look_up_finds_is_drafted_although_a_pass_has_run_ahead(
    config: EngineConfig, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelWorker, "_is_queued", True)
    monkeypatch.setattr(DraftingSwitch, "is_on", True)  # whatever is measured here
    declined: list[bool] = []
    decline = RunAhead.decline

    def watched(ahead: RunAhead) -> None:
        declined.append(ahead.is_offered)
        decline(ahead)

    monkeypatch.setattr(RunAhead, "decline", watched)
    requests = [
        make_request(number, 12, max_tokens=80, ignore_eos=True, logit_bias=bias)
        # With few tokens to choose from, the text repeats itself sooner or later.
        for number, bias in enumerate([dict.fromkeys(range(3 + n, 9 + n), 30.0) for n in range(4)])
    ]
    expected = engine_of(config, decoder, graphs=False).generate(requests)
    looking_up = replace(config, exits=ExitsConfig(heads=None, lookup=True))
    results = engine_of(looking_up, decoder).generate(requests)
    assert tokens_of(results) == tokens_of(expected)
    assert sum(result.draft_figures.num_accepted_tokens for result in results) > 0
    assert any(declined)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.5, "top_k": 3}], ids=str)
def test_logits_that_are_no_numbers_are_that_rows_error_as_elsewhere(
    config: EngineConfig,
    directory: Path,
    ops: Ops,
    launches: Launches,
    sampling: dict[str, object],
) -> None:
    """By then the pass that ran ahead has overwritten them."""
    decoder = load_tiny(directory, ops)
    good, ill = (make_request(n, max_tokens=30, ignore_eos=True, **sampling) for n in (0, 1))
    expected = engine_of(config, decoder).generate([good, ill])
    poison = next(i for i in expected[1].token_ids[5:] if i not in expected[0].token_ids)
    real = decoder.embed

    def embed(token_ids: Tensor) -> Tensor:
        return torch.where((token_ids == poison)[:, None], float("nan"), real(token_ids))

    decoder.embed = embed  # type: ignore[method-assign]
    launches.num_launched = 0
    results = engine_of(config, decoder).generate([good, ill])
    assert results[0].token_ids == expected[0].token_ids
    assert results[1].finish_reason is FinishReason.ERROR
    assert results[1].error == "the model's logits are not numbers"
    kept = expected[1].token_ids.index(poison) + 1
    assert results[1].token_ids == expected[1].token_ids[:kept]
    assert launches.num_launched > 0


def test_a_pass_is_taken_only_for_the_same_rows_at_the_same_places() -> None:
    hidden, states, others = torch.zeros(1), [object()], [object()]
    runner: Any = SimpleNamespace(run_through=lambda _: hidden)
    places, elsewhere = ([5], [21], [0]), ([5], [9], [0])
    tokens = NewestTokens([7], places, torch.zeros(1, 1))
    ahead: Any = RunAhead(runner)
    ahead.launch(states, tokens)
    ahead.begin()
    assert ahead.take(others, places) is None, "a rebuilt state is another one"
    assert ahead.take(states, elsewhere) is None, "a block was taken back and another given"
    assert ahead.take(states, places) is hidden
    assert ahead.take(states, places) is None
    ahead.begin()
    assert not ahead.is_offered, "it was for the step before"


def test_passes_in_vain_are_one_in_64_steps_and_few_in_a_row() -> None:
    runner: Any = SimpleNamespace(run_through=lambda _: torch.zeros(1))
    tokens = NewestTokens([7], ([5], [21], [0]), torch.zeros(1, 1))
    ahead = RunAhead(runner)
    for _ in range(20):  # what a step declines because it drafts is not in vain
        ahead.begin()
        ahead.decline()
        assert ahead.is_allowed
        ahead.launch([], tokens)
    ahead.begin()
    ahead.decline()

    def num_in_vain(num_steps: int) -> int:
        """Return how many of some steps launch a pass, none of which is taken."""
        launched = 0
        for _ in range(num_steps):
            ahead.begin()
            if ahead.is_allowed:
                ahead.launch([], tokens)
                launched += 1
        ahead.begin()
        return launched

    assert 8 <= num_in_vain(640) <= 12
    for _ in range(640):
        ahead.begin()
    assert num_in_vain(8) <= 3


def test_nothing_has_run_ahead_where_layers_do_not_run_as_one_call() -> None:
    runner: Any = SimpleNamespace(run_through=lambda _: None)
    ahead = RunAhead(runner)
    ahead.launch([], NewestTokens([7], ([5], [21], [0]), torch.zeros(1, 1)))
    ahead.begin()
    assert not ahead.is_offered
