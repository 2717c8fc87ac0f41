"""On a GPU, memory that really runs out and asserts that really fail change no output."""

import asyncio
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from asserting_worker import VERDICT_VARIABLE
from cuda_backend import needs_gpu, needs_kernels
from fake_worker import Letters, make_request
from tiny_model import write_tiny_heads, write_tiny_llama

from engine.config import CacheConfig, EngineConfig, ExitsConfig, ModelConfig, SchedulerConfig
from engine.offline import OfflineEngine
from engine.request import EarlyExitOptions, FinishReason, GenerationRequest
from engine.worker import step_guard
from engine.worker.worker import ModelWorker

pytestmark = [pytest.mark.torch, pytest.mark.gpu, needs_gpu, needs_kernels]

SUPPORT = Path(__file__).parents[2] / "support"
ROWS, PROMPT = 64, 240  # attention's memory is small for one such prompt, not for three
SPARE = 8 << 20  # bytes left for small tensors
JUST_LARGE = (1 << 20) + 512  # bytes; torch pools tensors of up to a MiB separately
REQUESTS = [
    make_request(n, PROMPT, temperature=(n % 3) / 3, ignore_eos=True, max_tokens=12, num_logprobs=1)
    for n in range(ROWS)
]
STREAMS = [make_request(n, temperature=n / 4, ignore_eos=True, max_tokens=48) for n in range(4)]

Tokens = list[tuple[int, ...]]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    """A configuration in which steps can have thousands of prompt tokens, and drafts."""
    root = tmp_path_factory.mktemp("tiny")
    directory = write_tiny_llama(root / "model")
    facts = json.loads((directory / "config.json").read_text())
    facts["max_position_embeddings"] = 8192
    (directory / "config.json").write_text(json.dumps(facts))
    return EngineConfig(
        model=ModelConfig(directory=directory, device="cuda"),
        cache=CacheConfig(kv_cache_memory_bytes=32 << 20),
        scheduler=SchedulerConfig(
            max_num_seqs=ROWS, max_num_batched_tokens=1 << 15, prefix_caching=False
        ),
        exits=ExitsConfig(
            heads=write_tiny_heads(directory, root / "heads", [2, 4]), max_draft_tokens=3
        ),
    )


@pytest.fixture(scope="module")
def worker(config: EngineConfig) -> ModelWorker:
    return ModelWorker(config)


@pytest.fixture(scope="module")
def engine(config: EngineConfig, worker: ModelWorker) -> OfflineEngine:
    """An engine that has launched all kernels it needs: they are loaded into the same memory."""
    engine = OfflineEngine(config, worker)
    for number in (ROWS, ROWS // 2, ROWS // 4, ROWS // 8, 2, 1):
        engine.generate(REQUESTS[:number])
    return engine


@pytest.fixture(scope="module")
def expected(engine: OfflineEngine) -> list[Any]:
    plain = [replace(each, early_exit=EarlyExitOptions(enabled=False)) for each in REQUESTS]
    return essence(engine, plain)


@pytest.fixture
def shortages(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """The errors that steps raised because memory ran out."""
    seen: list[Exception] = []
    real: Callable[[Exception], bool] = step_guard.is_out_of_memory

    def is_out_of_memory(error: Exception) -> bool:
        if real(error):
            seen.append(error.with_traceback(None))
        return real(error)

    monkeypatch.setattr(step_guard, "is_out_of_memory", is_out_of_memory)
    return seen


def essence(engine: OfflineEngine, requests: list[GenerationRequest]) -> list[Any]:
    """Return the results without the figures of drafts."""
    return [
        (result.token_ids, result.finish_reason, result.error)
        for result in engine.generate(requests)
    ]


def taken(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device="cuda")


@contextmanager
def want_of_memory(how: str) -> Iterator[None]:
    """Leave no memory for a tensor of more than a MiB, and some MiB for small ones."""
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
    held: list[torch.Tensor] = []
    if how == "a limit":
        total = torch.cuda.mem_get_info()[1]
        limit = torch.cuda.memory_reserved() + SPARE
        torch.cuda.set_per_process_memory_fraction(limit / total)
    else:
        for size in (1 << 30, 64 << 20, 10 << 20):  # torch allocates such sizes as they are
            with suppress(torch.OutOfMemoryError):
                while torch.cuda.mem_get_info()[0] >= size + SPARE:
                    held.append(taken(size))
    with suppress(torch.OutOfMemoryError):
        while True:  # what is left of the segments that torch has allocated
            held.append(taken(JUST_LARGE))
    try:
        yield
    finally:
        held.clear()
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@pytest.mark.parametrize("how", ["a limit", "a full card"])
def test_what_does_not_fit_together_is_computed_in_parts(
    engine: OfflineEngine, expected: list[Any], shortages: list[Exception], how: str
) -> None:
    assert essence(engine, REQUESTS) == expected
    assert not shortages
    with want_of_memory(how):
        assert essence(engine, REQUESTS) == expected
    num_shortages = len(shortages)
    assert num_shortages > 0
    assert isinstance(shortages[0], torch.OutOfMemoryError)
    assert essence(engine, REQUESTS) == expected
    assert len(shortages) == num_shortages, "the memory is there again"


@pytest.mark.parametrize("how", ["a limit", "a full card"])
def test_only_the_row_that_never_fits_fails(
    engine: OfflineEngine, expected: list[Any], shortages: list[Exception], how: str
) -> None:
    huge = make_request(99, 6000, max_tokens=3, ignore_eos=True)
    for number in (ROWS, ROWS // 2, ROWS // 4, ROWS // 8, 4, 2, 1):
        # The batch will be halved repeatedly: load the kernels for these numbers of tokens while
        # there is memory for them.
        *_, (_, reason, _) = essence(engine, [*REQUESTS[ROWS - number : ROWS - 1], huge])
        assert reason is FinishReason.LENGTH
    with want_of_memory(how):
        *others, last = essence(engine, [*REQUESTS[: ROWS - 1], huge])
    assert others == expected[: ROWS - 1], shortages
    assert last == ((), FinishReason.ERROR, "the request does not fit the memory"), shortages
    assert isinstance(shortages[0], torch.OutOfMemoryError), shortages


@pytest.mark.parametrize("early_exit", [False, True])
def test_log_probabilities_are_the_same_bits_in_any_company(
    engine: OfflineEngine, early_exit: bool
) -> None:
    few = [replace(r, early_exit=EarlyExitOptions(enabled=early_exit)) for r in REQUESTS[:6]]
    alone = [engine.generate([each])[0].logprobs for each in REQUESTS[:6]]
    assert [result.logprobs for result in engine.generate(few)] == alone


@pytest.fixture(scope="module")
def small(config: EngineConfig) -> EngineConfig:
    """A configuration that loads quickly."""
    return replace(
        config,
        cache=CacheConfig(kv_cache_memory_bytes=1 << 20),
        scheduler=SchedulerConfig(max_num_seqs=len(STREAMS)),
        exits=ExitsConfig(enabled=False),
    )


@pytest.fixture(scope="module")
def streams(small: EngineConfig) -> Tokens:
    return [result.token_ids for result in OfflineEngine(small).generate(STREAMS)]


@pytest.fixture
def verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which a worker says how it classified the error of its broken device."""
    paths = [str(SUPPORT), str(SUPPORT.parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths).rstrip(os.pathsep))
    monkeypatch.setenv(VERDICT_VARIABLE, str(tmp_path / "verdict"))
    return tmp_path / "verdict"


def assert_device_broke(verdict: Path) -> None:
    said = json.loads(verdict.read_text())
    assert "device-side assert" in said["message"], said
    assert (said["is_device_broken"], said["is_out_of_memory"]) == (True, False), said
    assert (said["is_row_fault"], said["num_rows"]) == (False, len(STREAMS)), said


def test_a_failed_assert_is_told_from_a_rows_own_fault(small: EngineConfig, verdict: Path) -> None:
    """It runs in its own process, whose device is lost afterwards: later steps fail as well."""
    code = (
        "import sys\n"
        "from asserting_worker import AssertingWorker\n"
        "from fake_worker import make_request\n"
        "from engine.config import *\n"
        "from engine.offline import OfflineEngine\n"
        "from pathlib import Path\n"
        "config = EngineConfig(\n"
        "    model=ModelConfig(directory=Path(sys.argv[1]), device='cuda'),\n"
        "    cache=CacheConfig(kv_cache_memory_bytes=1 << 20),\n"
        "    scheduler=SchedulerConfig(max_num_seqs=4), exits=ExitsConfig(enabled=False))\n"
        "streams = [make_request(n, ignore_eos=True, max_tokens=48) for n in range(4)]\n"
        "engine = OfflineEngine(config, AssertingWorker(config))\n"
        "for turn in range(2):\n"
        "    try:\n"
        "        engine.generate(streams)\n"
        "    except Exception as error:\n"
        "        print('failed', turn, type(error).__name__, flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(small.model.directory)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.count("failed") == 2, done.stdout + done.stderr[-3000:]
    assert_device_broke(verdict)


def test_streams_outlive_the_device_of_their_worker(
    small: EngineConfig, streams: Tokens, verdict: Path
) -> None:
    pytest.importorskip("msgspec")
    from engine.async_engine import AsyncEngine
    from engine.worker_process import WorkerProcess

    async def tokens_of(engine: AsyncEngine, request: GenerationRequest) -> tuple[int, ...]:
        return tuple([t async for output in engine.generate(request) for t in output.token_ids])

    async def run() -> tuple[Tokens, int]:
        worker = WorkerProcess(small, module="asserting_worker_main")
        engine = AsyncEngine(small, worker, Letters())
        await engine.start()
        outputs = await asyncio.gather(*(tokens_of(engine, request) for request in STREAMS))
        num_restarts = engine.stats().worker_restarts_total
        await engine.stop()
        return outputs, num_restarts

    outputs, num_restarts = asyncio.run(run())
    assert outputs == streams
    assert num_restarts == 1
    assert_device_broke(verdict)
