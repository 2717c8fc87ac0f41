import asyncio
from collections.abc import Callable

import pytest
from fake_engine import ByteTokenizer, FakeEngine

from engine.errors import EngineFailed, EngineStopped, ModelLoadError, ModelNotFound
from server.errors import ModelNotReady
from server.service import InferenceService, ServedModel, ServiceState


def service_of(engine: FakeEngine, load_time_s: float = 0.0) -> InferenceService:
    async def load() -> ServedModel:
        await asyncio.sleep(load_time_s)
        await engine.start()
        return ServedModel(engine, ByteTokenizer())  # type: ignore[arg-type]

    return InferenceService(("a", "b"), load)


async def until(is_true: Callable[[], bool]) -> None:
    """Wait until a condition holds, for at most 30 s."""
    async with asyncio.timeout(30):
        while not is_true():
            await asyncio.sleep(0.001)


async def test_it_answers_while_it_loads_and_serves_afterwards():
    service = service_of(FakeEngine(), load_time_s=0.01)
    service.start()
    with pytest.raises(ModelNotReady):
        service.model("a")
    await until(lambda: service.state is not ServiceState.LOADING)

    assert service.state is ServiceState.READY
    assert service.model("a") is service.model("b")
    with pytest.raises(ModelNotFound):
        service.model("c")


async def test_a_failed_load_is_kept():
    service = service_of(FakeEngine(start_error=ModelLoadError("no weights")))
    service.start()
    await until(lambda: service.failure is not None)

    assert str(service.failure) == "no weights"
    with pytest.raises(EngineFailed):
        service.model("a")


async def test_once_stopping_nothing_new_is_taken():
    engine = FakeEngine()
    service = service_of(engine)
    service.start()
    await until(lambda: service.state is ServiceState.READY)
    await service.stop()

    assert engine.is_stopped
    with pytest.raises(EngineStopped):
        service.model("a")


async def test_stopping_while_loading_cancels_the_load():
    service = service_of(FakeEngine(), load_time_s=1000)
    service.start()
    await asyncio.wait_for(service.stop(), timeout=30)

    assert service.loaded_model is None


async def test_an_engine_that_failed_for_good_is_why_the_process_ends():
    engine = FakeEngine()
    service = service_of(engine)
    service.start()
    await until(lambda: service.state is ServiceState.READY)
    engine.is_recovering = True
    assert (service.state, service.failure) == (ServiceState.RECOVERING, None)
    assert service.model("a")
    engine.fatal_error = EngineFailed("5 workers in a row were lost")

    assert service.state is ServiceState.FAILED
    assert str(service.failure) == "5 workers in a row were lost"
