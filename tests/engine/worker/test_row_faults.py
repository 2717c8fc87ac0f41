"""If memory runs out or rows fail, the others get exactly what they would have had."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from fake_worker import make_request
from tiny_model import sequence_start, write_tiny_llama
from torch import Tensor

from engine.config import CacheConfig, EngineConfig, ExitsConfig, ModelConfig, SchedulerConfig
from engine.model.decoder import Decoder
from engine.offline import GenerationResult, OfflineEngine
from engine.plan import RowPlan, RowResult, StepPlan, StepResult
from engine.request import FinishReason, GenerationRequest
from engine.worker import logprobs, processors
from engine.worker.logprobs import Wanted
from engine.worker.row import Row
from engine.worker.row_faults import without_choice
from engine.worker.sample_point import SamplePoint
from engine.worker.sequence_state import SequenceState
from engine.worker.worker import ModelWorker

pytestmark = pytest.mark.torch

REQUESTS = [
    make_request(number, temperature=number / 3, ignore_eos=True, max_tokens=12, num_logprobs=1)
    for number in range(5)
]
ILL = make_request(9, ignore_eos=True, max_tokens=12, num_logprobs=1, logit_bias={3: 1.0})


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    directory = write_tiny_llama(tmp_path_factory.mktemp("tiny"))
    return EngineConfig(
        model=ModelConfig(directory=directory, backend="torch", num_threads=1),
        cache=CacheConfig(kv_cache_memory_bytes=1 << 20),
        exits=ExitsConfig(enabled=False),  # drafts depend on measured times
    )


@pytest.fixture(scope="module")
def expected(config: EngineConfig) -> list[GenerationResult]:
    return OfflineEngine(config).generate(REQUESTS)


def generate(config: EngineConfig, *more: GenerationRequest) -> list[GenerationResult]:
    return OfflineEngine(config).generate([*REQUESTS, *more])


@pytest.fixture
def num_corrupt(monkeypatch: pytest.MonkeyPatch) -> Counter[bool]:
    """Counts rows with an error by whether they were reported as corrupt."""
    counts: Counter[bool] = Counter()
    real = ModelWorker.execute

    def execute(self: ModelWorker, plan: StepPlan) -> StepResult:
        result = real(self, plan)
        counts.update(row.is_corrupt for row in result.rows if row.error is not None)
        return result

    monkeypatch.setattr(ModelWorker, "execute", execute)
    return counts


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
@pytest.mark.parametrize("most_tokens", [2, 7])
def test_what_does_not_fit_together_is_computed_in_parts(
    config: EngineConfig,
    expected: list[GenerationResult],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    most_tokens: int,
) -> None:
    real, num_failures = Decoder.run, 0

    def run(self: Decoder, hidden: Tensor, *args: object) -> Tensor:
        nonlocal num_failures
        computed = real(self, hidden, *args)  # type: ignore[arg-type]
        if 5 != len(hidden) > most_tokens:  # a prompt of 5 has to fit
            num_failures += 1
            raise error
        return computed

    monkeypatch.setattr(Decoder, "run", run)
    assert generate(config) == expected
    assert num_failures > 0


def test_only_the_row_that_never_fits_fails(
    config: EngineConfig, expected: list[GenerationResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Decoder.run

    def run(self: Decoder, hidden: Tensor, *args: object) -> Tensor:
        if len(hidden) >= 30:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, hidden, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "run", run)
    *others, large = generate(config, make_request(7, num_prompt=30))
    assert others == expected
    assert large.finish_reason is FinishReason.ERROR
    assert large.error == "the request does not fit the memory"


def test_a_fault_in_one_rows_processors_is_its_own(
    config: EngineConfig,
    expected: list[GenerationResult],
    monkeypatch: pytest.MonkeyPatch,
    num_corrupt: Counter[bool],
) -> None:
    real = processors._wishes

    def wishes(point: SamplePoint, *args: object) -> object:
        if point.state.sampling.logit_bias and point.state.num_output_tokens() == 4:
            raise IndexError("no such column")
        return real(point, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(processors, "_wishes", wishes)
    *others, ill = generate(config, ILL)
    assert others == expected
    assert ill.finish_reason is FinishReason.ERROR
    assert len(ill.token_ids) == 4
    assert num_corrupt == {False: 1}


def test_a_fault_in_one_rows_result_is_its_own(
    config: EngineConfig, expected: list[GenerationResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = logprobs.read_logprobs

    def read_logprobs(logits: Tensor, wanted: Sequence[Wanted]) -> object:
        if any(one.num_top == 2 for one in wanted):
            raise ValueError("a fault")
        return real(logits, wanted)

    monkeypatch.setattr(logprobs, "read_logprobs", read_logprobs)
    *others, ill = generate(config, make_request(9, num_logprobs=2))
    assert others == expected
    assert ill.finish_reason is FinishReason.ERROR
    assert ill.token_ids == ()


def test_a_broken_device_is_nobodys_row_fault(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wishes(*_: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(processors, "_wishes", wishes)
    with pytest.raises(RuntimeError, match="device-side assert"):
        generate(config, ILL)


def test_logits_that_are_not_numbers_end_their_row_only(
    config: EngineConfig,
    expected: list[GenerationResult],
    monkeypatch: pytest.MonkeyPatch,
    num_corrupt: Counter[bool],
) -> None:
    real = Decoder.logits

    def logits(self: Decoder, hidden: Tensor) -> Tensor:
        computed = real(self, hidden)
        if len(computed) > len(REQUESTS):
            computed[len(REQUESTS) :] = float("nan")
        return computed

    monkeypatch.setattr(Decoder, "logits", logits)
    *others, ill = generate(config, ILL)
    assert others == expected
    assert ill.finish_reason is FinishReason.ERROR
    assert ill.token_ids == ()
    assert num_corrupt == {True: 1}


@pytest.mark.parametrize(("num_prompt", "num_rows", "num_cached"), [(5, 1, 4), (40, 2, 24)])
def test_nobody_finds_the_blocks_of_a_row_that_is_no_numbers(
    config: EngineConfig,
    monkeypatch: pytest.MonkeyPatch,
    num_prompt: int,
    num_rows: int,
    num_cached: int,
    num_corrupt: Counter[bool],
) -> None:
    """Neither if the prompt is computed at once nor if only its first chunk is NaN."""
    request = make_request(1, num_prompt=num_prompt, ignore_eos=True, max_tokens=6)
    twins = [replace(request, request_id=name) for name in ("ill", "well", "again")]
    small = replace(
        config,
        cache=CacheConfig(kv_cache_memory_bytes=1 << 20, block_size=4),
        scheduler=SchedulerConfig(max_num_batched_tokens=24, max_num_seqs=num_rows),
    )
    [right] = OfflineEngine(small).generate([request])
    real, num_runs = Decoder.run, 0

    def run(self: Decoder, hidden: Tensor, *args: object) -> Tensor:
        nonlocal num_runs
        num_runs += 1
        if num_runs == 1:
            hidden = hidden * float("nan")
        return real(self, hidden, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "run", run)
    ill, well, again = OfflineEngine(small).generate(twins)
    assert (ill.finish_reason, ill.token_ids) == (FinishReason.ERROR, ())
    assert (well.token_ids, well.num_cached_tokens) == (right.token_ids, 0)
    assert (again.token_ids, again.num_cached_tokens) == (right.token_ids, num_cached)
    assert num_corrupt == {True: 1}


def test_a_row_without_a_choice_is_corrupt_only_for_its_own_logits() -> None:
    plan = RowPlan(0, 2, 1, [0], max_draft_tokens=0, is_decoding=True)
    rows = [Row(plan, SequenceState(sequence_start(number, [5, 9, 2]))) for number in range(3)]
    results = [RowResult(number, [token_id]) for number, token_id in enumerate([-1, -1, 7])]
    ended = without_choice(rows, results, [0, 1, 2], torch.tensor([False, True, True]))
    assert [each.is_corrupt for each in ended] == [False, True, False]
    assert [bool(each.error) for each in ended] == [True, True, False]
    assert ended[2].token_ids == [7]
