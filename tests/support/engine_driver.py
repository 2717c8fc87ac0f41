"""Drives an `EngineCore` with a fake worker in the order of the real loop; keeps the outputs."""

from collections import defaultdict

from fake_worker import FakeWorker, Letters, WorkerCrash

from engine.config import SchedulerConfig
from engine.core import EngineCore
from engine.errors import WorkerLost
from engine.limits import ModelLimits
from engine.plan import StepPlan, StepResult
from engine.request import FinishReason, GenerationRequest, RequestOutput
from engine.scheduler import Committed


class EngineDriver:
    """An engine that tests run step by step: a step is rendered while the next is in flight."""

    def __init__(self, worker: FakeWorker, config: SchedulerConfig) -> None:
        self.worker = worker
        info = worker.info
        self.core = EngineCore(config, ModelLimits.of(info), Letters(), info.num_layers)
        self.outputs: defaultdict[str, list[RequestOutput]] = defaultdict(list)
        self.num_crashes = 0
        # Kills of the worker while a request ran alone, by request.
        self.num_kills_alone: defaultdict[str, int] = defaultdict(int)
        # A result of None means that the worker crashes in this step.
        self._in_flight: tuple[StepPlan, StepResult | None] | None = None
        self._committed: list[Committed] = []
        self._added: list[str] = []

    def add(self, request: GenerationRequest) -> None:
        """Add a request."""
        self.core.add_all([request])
        self._added.append(request.request_id)

    def send(self) -> None:
        """Schedule the next step and let the worker compute it, if none is in flight."""
        if self._in_flight is None:
            plan = self.core.schedule()
            if plan is not None:
                self._in_flight = plan, self._execute(plan)

    def crash(self, num_blocks: int | None = None) -> None:
        """Kill the worker, or let it die of the step in flight; the next may have other memory."""
        self.render()
        plan, result = self._in_flight or (None, None)
        is_crash = plan is not None and result is None
        self._in_flight = None
        self.worker.forget()
        self.num_crashes += is_crash
        if plan is not None and len(plan.rows) == 1 and not is_crash:
            self.num_kills_alone[self.request_id(plan.rows[0].sequence_id)] += 1
        self.keep(self.core.lose_worker(plan, WorkerLost("killed", is_crash=is_crash)))
        if num_blocks is not None:
            self.worker.resize(num_blocks)
            self.keep(self.core.adapt(ModelLimits.of(self.worker.info)))

    def render(self) -> None:
        """Render what was committed and is not rendered yet."""
        committed, self._committed = self._committed, []
        self.keep(self.core.render(committed))
        self.core.check()

    def receive(self) -> None:
        """Commit the step in flight, after rendering what was committed before."""
        self.render()
        if self._in_flight is None:
            return
        plan, result = self._in_flight
        if result is None:
            self.crash()
        else:
            self._committed = self.core.commit(plan, result)
            self._in_flight = None

    def keep(self, outputs: list[RequestOutput]) -> None:
        """Keep outputs as clients would get them."""
        for output in outputs:
            self.outputs[output.request_id].append(output)

    def run(self, requests: list[GenerationRequest]) -> None:
        """Add requests and run to the end."""
        for request in requests:
            self.add(request)
        self.run_to_the_end()

    def run_to_the_end(self) -> None:
        """Step until nothing is left to do."""
        for _ in range(10_000):
            self.send()
            if self._in_flight is None and not self._committed:
                return
            self.receive()
        raise AssertionError("the engine does not come to an end")

    def request_id(self, sequence_id: int) -> str:
        """Return the request of a sequence; sequences are numbered in the order of addition."""
        return self._added[sequence_id]

    def _execute(self, plan: StepPlan) -> StepResult | None:
        try:
            return self.worker.execute(plan)
        except WorkerCrash:
            return None

    def text(self, request_id: str) -> str:
        """Return all text of a request so far."""
        return "".join(output.text for output in self.outputs[request_id])

    def token_ids(self, request_id: str) -> tuple[int, ...]:
        """Return all tokens of a request so far."""
        return tuple(token for output in self.outputs[request_id] for token in output.token_ids)

    def finish_reasons(self, request_id: str) -> list[FinishReason]:
        """Return the finish reasons that a client has seen: exactly one after the end."""
        return [o.finish_reason for o in self.outputs[request_id] if o.finish_reason is not None]
