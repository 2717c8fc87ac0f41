"""The whole server around a worker that computes nothing.

Run as `fast_worker_serve.py PORT STEP_S [STREAM_INTERVAL]`. Every step takes STEP_S seconds and
gives each decoding row a token, so all CPU time of the process is the server's own. That time
divided by the number of requests is what one costs outside the worker. `make bench-overhead` puts
load on it.
"""

import asyncio
import sys
from collections.abc import Awaitable
from pathlib import Path

from fake_engine import ByteTokenizer

from engine import AsyncEngine, EngineConfig, ModelConfig
from engine.pauses import limit_pauses, spare_what_is_loaded
from engine.plan import RowResult, StepPlan, StepResult, WorkerInfo
from server.app import create_app
from server.http_server import DrainingServer, listen
from server.service import InferenceService, ServedModel
from server.settings import ServerSettings

MODEL = "nothing"
_TOKENS: tuple[list[int], list[int]] = ([], [ord("a")])  # of a row, by `is_decoding`


class Speller(ByteTokenizer):
    """A `ByteTokenizer` that the detokenizer can use too."""

    strips_first_space = False

    def is_special(self, token_id: int) -> bool:
        return token_id >= 256


class FastWorker:
    """An `engine.plan.Worker` that runs in the engine's own loop."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s

    async def start(self) -> WorkerInfo:
        return WorkerInfo(
            num_blocks=8192,
            block_size=16,
            vocab_size=260,
            num_layers=4,
            hidden_size=1,
            max_model_len=2048,
            eos_token_ids=[257],
            dtype="none",
            numbers="none",
            device="none",
            exit_layers=[1],
            max_draft_tokens=0,
            backend="none",
        )

    def execute(self, plan: StepPlan) -> Awaitable[StepResult]:
        loop = asyncio.get_running_loop()
        result = loop.create_future()
        loop.call_later(self._step_s, self._answer, plan, result)
        return result

    def _answer(self, plan: StepPlan, result: asyncio.Future[StepResult]) -> None:
        if not result.done():
            rows = [RowResult(row.sequence_id, _TOKENS[row.is_decoding]) for row in plan.rows]
            result.set_result(StepResult(step_id=plan.step_id, rows=rows, duration_s=self._step_s))

    async def watch(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass


def main(port: int, step_s: float, stream_interval: int = 1) -> None:
    """Serve until a signal."""
    limit_pauses()
    config = EngineConfig(model=ModelConfig(directory=Path()))
    engine = AsyncEngine(config, FastWorker(step_s), Speller())  # type: ignore[arg-type]

    async def load() -> ServedModel:
        await engine.start()
        assert engine.info is not None
        spare_what_is_loaded()
        return ServedModel(engine, Speller())  # type: ignore[arg-type]

    service = InferenceService((MODEL,), load)
    settings = ServerSettings(
        model=MODEL, access_log="none", shutdown_timeout=0, stream_interval=stream_interval
    )
    server = DrainingServer(create_app(service, settings), service, settings)
    server.run(sockets=[listen("127.0.0.1", port)])


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), *map(int, sys.argv[3:]))
