"""A real worker process on a tiny model: it loads, computes, reports, and ends when it should."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from fake_worker import Letters, make_request
from faults import KILLER_TOKEN_ID, RAISING_TOKEN_ID
from liveness import DEADLINE_S, is_alive, wait_until
from tiny_model import write_tiny_llama

from engine.async_engine import AsyncEngine
from engine.build import build_engine
from engine.config import (
    CacheConfig,
    EngineConfig,
    ExitsConfig,
    ModelConfig,
    SupervisionConfig,
)
from engine.errors import HeadsMismatch, ModelLoadError, WorkerLost
from engine.memory_kills import num_memory_kills
from engine.offline import OfflineEngine
from engine.plan import RowPlan, StepPlan
from engine.request import FinishReason, GenerationRequest, Structure
from engine.worker_process import WorkerProcess

pytestmark = pytest.mark.torch

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    directory = write_tiny_llama(tmp_path_factory.mktemp("tiny"))
    return EngineConfig(
        model=ModelConfig(directory=directory, backend="torch", num_threads=1),
        cache=CacheConfig(kv_cache_memory_bytes=1 << 20),
    )


@pytest.fixture
async def worker(config: EngineConfig) -> AsyncIterator[WorkerProcess]:
    process = WorkerProcess(config)
    yield process
    await process.close()


@pytest.fixture
def support_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let worker processes import modules of tests/support."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(SUPPORT), str(SUPPORT.parents[1]))))


@pytest.fixture
def faulty_module(support_modules: None) -> str:
    """The main module of a worker that fails when a plan says so."""
    return "faulty_worker_main"


@pytest.fixture
def light_module(support_modules: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The main module of a worker without a model, which starts at once and answers no plan."""
    monkeypatch.setenv("LIGHT_WORKER_PID", str(tmp_path / "pid"))
    return "light_worker_main"


@pytest.fixture
async def light_worker(config: EngineConfig, light_module: str) -> AsyncIterator[WorkerProcess]:
    process = WorkerProcess(config, module=light_module)
    yield process
    await process.close()


def stop(pid: int) -> None:
    """Stop a process, and wait until it has: its threads may run on after `kill` returns."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


async def test_outputs_equal_those_of_a_worker_in_this_process(config: EngineConfig) -> None:
    requests = [make_request(number, temperature=number / 2) for number in range(3)]
    expected = OfflineEngine(config).generate(requests)
    progress: list[tuple[str, float]] = []
    worker = WorkerProcess(config, lambda text, fraction: progress.append((text, fraction)))
    engine = AsyncEngine(config, worker, Letters())
    await engine.start()
    assert progress
    pid = worker.pid
    assert pid is not None
    niceness = [os.getpriority(os.PRIO_PROCESS, each) for each in (0, pid)]
    assert niceness[0] < niceness[1] or niceness == [19, 19], "it gives way to its server"
    # Signals sent to the process group reach the worker too; it leaves them to the server.
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    for request, result in zip(requests, expected, strict=True):
        tokens = [t async for output in engine.generate(request) for t in output.token_ids]
        assert tuple(tokens) == result.token_ids
    await engine.stop()
    assert not is_alive(pid)


async def test_a_terminal_s_signals_do_not_reach_the_worker(worker: WorkerProcess) -> None:
    await worker.spawn()
    assert worker.pid is not None
    assert os.getsid(worker.pid) == worker.pid, "the leader of a session of its own"


async def test_a_process_spawned_early_is_the_one_that_loads(worker: WorkerProcess) -> None:
    await worker.spawn()
    pid = worker.pid
    assert pid is not None
    await worker.start()
    assert worker.pid == pid


async def test_no_process_stays_behind_where_there_is_no_tokenizer(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawned = []
    spawn = WorkerProcess.spawn

    async def noting_spawn(self: WorkerProcess) -> None:
        await spawn(self)
        spawned.append(self.pid)

    monkeypatch.setattr(WorkerProcess, "spawn", noting_spawn)
    with pytest.raises(ModelLoadError, match="tokenizer"):
        await build_engine(config)
    assert len(spawned) == 1
    assert not is_alive(spawned[0])


async def test_what_cannot_be_loaded_is_told_by_its_name(
    config: EngineConfig, tmp_path: Path
) -> None:
    exits = ExitsConfig(heads=tmp_path / "nowhere")
    worker = WorkerProcess(EngineConfig(model=config.model, exits=exits))
    with pytest.raises(HeadsMismatch, match="nowhere"):
        await worker.start()
    await worker.close()


async def test_a_killed_worker_is_noticed_by_step_and_watch(worker: WorkerProcess) -> None:
    await worker.start()
    watching = asyncio.create_task(worker.watch())
    await worker.execute(StepPlan(step_id=1))
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerLost, match="SIGKILL") as lost:
        await worker.execute(StepPlan(step_id=2))
    assert not lost.value.is_crash
    assert lost.value.was_killed == (num_memory_kills() is not None)
    with pytest.raises(WorkerLost, match="SIGKILL"):
        await watching


async def test_who_may_have_wanted_memory_was_not_killed_by_somebody(
    light_worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = iter([5, 6])
    monkeypatch.setattr("engine.worker_process.num_memory_kills", lambda: next(kills))
    await light_worker.start()
    assert light_worker.pid is not None
    os.kill(light_worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerLost, match="lack of memory") as lost:
        await light_worker.watch()
    assert not lost.value.was_killed


@pytest.mark.parametrize("how", [signal.SIGABRT, signal.SIGSEGV])
async def test_a_worker_that_faults_has_crashed(
    light_worker: WorkerProcess, how: signal.Signals
) -> None:
    await light_worker.start()
    assert light_worker.pid is not None
    os.kill(light_worker.pid, how)
    with pytest.raises(WorkerLost, match=how.name) as lost:
        await light_worker.watch()
    assert lost.value.is_crash


async def test_a_lost_worker_starts_again_and_serves_the_same(worker: WorkerProcess) -> None:
    info = await worker.start()
    for _ in range(2):
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerLost):
            await worker.watch()
        await worker.close()
        assert await worker.start() == info
        await worker.execute(StepPlan(step_id=1))


@pytest.mark.parametrize("is_busy", [False, True])
async def test_a_stopped_worker_is_killed_for_its_silence(
    config: EngineConfig, light_module: str, is_busy: bool
) -> None:
    supervision = SupervisionConfig(heartbeat_timeout_s=2.0)
    worker = WorkerProcess(replace(config, supervision=supervision), module=light_module)
    await worker.start()
    pid = worker.pid
    assert pid is not None
    await asyncio.sleep(0.3)
    stop(pid)
    started = time.monotonic()
    waiting = worker.execute(StepPlan(step_id=1)) if is_busy else worker.watch()
    with pytest.raises(WorkerLost, match="no sign of life") as lost:
        await asyncio.wait_for(waiting, DEADLINE_S)
    assert not lost.value.is_crash
    assert time.monotonic() - started > 1.0
    await worker.close()
    assert not is_alive(pid)


async def test_a_step_that_never_ends_is_ended_though_the_heart_beats(
    config: EngineConfig, light_module: str
) -> None:
    """The light worker is used because it starts within the step's deadline on any machine."""
    supervision = SupervisionConfig(step_timeout_s=5.0, heartbeat_timeout_s=60.0)
    worker = WorkerProcess(replace(config, supervision=supervision), module=light_module)
    await worker.start()
    with pytest.raises(WorkerLost, match="busy for more than 5 s") as lost:
        await worker.execute(StepPlan(step_id=1))
    assert lost.value.is_crash
    await worker.close()


async def test_structures_are_prepared_or_given_up_beside_steps(worker: WorkerProcess) -> None:
    """Without a tokenizer no structure compiles; whoever waits for one is told all the same."""
    structure = Structure(kind="regex", source="a")
    await worker.prepare(structure)
    await worker.start()
    await asyncio.wait_for(worker.prepare(structure), DEADLINE_S)
    assert worker.pid is not None
    stop(worker.pid)
    waiting = asyncio.create_task(worker.prepare(structure))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    os.kill(worker.pid, signal.SIGKILL)
    await asyncio.wait_for(waiting, DEADLINE_S)


async def test_a_start_that_the_system_refuses_leaves_no_file_open(
    worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, "no process left")

    await worker.close()
    before = set(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        patched.setattr("asyncio.create_subprocess_exec", refuse)
        with pytest.raises(OSError, match="no process"):
            await worker.start()
    await worker.close()
    await asyncio.sleep(0)
    assert set(os.listdir("/proc/self/fd")) <= before


async def test_a_step_that_raises_is_an_engine_failure(worker: WorkerProcess) -> None:
    await worker.start()
    unknown = make_unknown_row_plan()
    with pytest.raises(WorkerLost, match="step 7 failed") as lost:
        await worker.execute(unknown)
    assert lost.value.is_crash


async def test_killed_while_loading_is_a_load_error(worker: WorkerProcess) -> None:
    starting = asyncio.create_task(worker.start())
    while worker.pid is None:
        await asyncio.sleep(0.001)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(ModelLoadError, match="while loading the model"):
        await starting


async def test_closed_while_loading_ends_at_once(worker: WorkerProcess) -> None:
    starting = asyncio.create_task(worker.start())
    while worker.pid is None:
        await asyncio.sleep(0.001)
    pid = worker.pid
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await worker.close()
    await worker.close()
    assert not is_alive(pid)


async def test_streams_survive_kills_and_killers_are_named(
    config: EngineConfig, faulty_module: str
) -> None:
    requests = [
        make_request(number, temperature=number / 2, ignore_eos=True, max_tokens=40)
        for number in range(4)
    ]
    expected = OfflineEngine(config).generate(requests)
    worker = WorkerProcess(config, module=faulty_module)
    engine = AsyncEngine(config, worker, Letters())
    await engine.start()

    async def tokens_of(request: GenerationRequest) -> tuple[int, ...]:
        tokens: list[int] = []
        async for output in engine.generate(request):
            tokens += output.token_ids
            if request is requests[0] and len(tokens) in (5, 20) and worker.pid is not None:
                os.kill(worker.pid, signal.SIGKILL)
        return tuple(tokens)

    async def reason_of(first_id: int) -> FinishReason | None:
        request = GenerationRequest(request_id=str(first_id), prompt_token_ids=(first_id, 5))
        return [output async for output in engine.generate(request)][-1].finish_reason

    killers = [asyncio.create_task(reason_of(i)) for i in (KILLER_TOKEN_ID, RAISING_TOKEN_ID)]
    outcomes = await asyncio.gather(*map(tokens_of, requests))
    assert list(outcomes) == [result.token_ids for result in expected]
    assert await asyncio.gather(*killers) == [FinishReason.ERROR] * 2
    assert engine.stats().num_blocks_used == 0
    await engine.stop()


def test_a_worker_does_not_outlive_its_server(config: EngineConfig) -> None:
    script = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from engine.config import *\n"
        "from engine.worker_process import WorkerProcess\n"
        "async def main():\n"
        "    model = ModelConfig(directory=Path(sys.argv[1]), backend='torch')\n"
        "    worker = WorkerProcess(EngineConfig(model=model))\n"
        "    await worker.start()\n"
        "    print(worker.pid, flush=True)\n"
        "    await asyncio.sleep(1000)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", script, str(config.model.directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        assert is_alive(pid)
        server.kill()
    wait_until(lambda: not is_alive(pid))


def make_unknown_row_plan() -> StepPlan:
    """Make a plan with a row of an unknown sequence, which no scheduler makes."""
    row = RowPlan(
        sequence_id=99,
        start=0,
        num_tokens=1,
        block_table=[0],
        max_draft_tokens=0,
        is_decoding=True,
    )
    return StepPlan(step_id=7, rows=[row])
