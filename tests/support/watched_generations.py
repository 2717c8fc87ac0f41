"""Generations on a fake engine, with an observer that keeps what it is told."""

from fake_engine import FakeEngine

from engine.request import FinishReason, GenerationRequest, RequestOutput
from server.deadlines import Deadlines
from server.generations import Generations
from server.records import RequestRecord


class Watch:
    """A watch that keeps the text and the ends that it is told."""

    def __init__(self) -> None:
        self.text = ""
        self.ends: list[FinishReason | None] = []

    def note(self, output: RequestOutput) -> None:
        self.text += output.text

    def end(self, reason: FinishReason | None = None) -> None:
        self.ends.append(reason)


class Observer:
    """An observer that keeps its watches."""

    def __init__(self) -> None:
        self.watches: list[Watch] = []
        self.num_refused = 0

    def watch(self, index: int, request: GenerationRequest, record: RequestRecord) -> Watch:
        self.watches.append(Watch())
        return self.watches[-1]

    def note_refusal(self, requests: list[GenerationRequest], record: RequestRecord) -> None:
        self.num_refused += len(requests)


def generations(
    engine: FakeEngine, count: int, *, interval: int = 1, **options: object
) -> Generations:
    first = len(engine.requests)
    requests = [
        GenerationRequest(
            request_id=str(first + index), prompt_token_ids=(1,), output_interval=interval
        )
        for index in range(count)
    ]
    record = RequestRecord(request_id="r")
    return Generations(engine, Observer(), requests, record, **options)  # type: ignore[arg-type]


def started(engine: FakeEngine, count: int, **options: object) -> Generations:
    made = generations(engine, count, **options)
    made.start(Deadlines(0, 0))
    return made


def watches(made: Generations) -> list[Watch]:
    return made._observer.watches  # type: ignore[attr-defined]
