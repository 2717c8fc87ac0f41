"""docs/parameters.md: what really happens to every parameter. Run this to write it anew.

Each parameter is sent to a server around a fake engine: to both endpoints, whole and streamed, with
early exits on and off. A parameter is honoured where the engine's request, the template's variables
or the answer differ from those of a request without it.
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fake_engine import ByteTokenizer, FakeEngine
from live_server import MODEL, fake_app
from parameter_cases import CASES, Case
from starlette.testclient import TestClient

DOCUMENT = Path(__file__).parents[2] / "docs" / "parameters.md"
HONOURED, WITHOUT_EFFECT, REFUSED = "honoured", "without effect", "refused by name"
PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
WAYS = tuple(itertools.product(PATHS, (False, True), (True, False)))  # endpoint, stream, exits

_OF_THIS_ANSWER = re.compile(r'(?<="id":)"[^"]+"|(?<="created":)\d+')
_HEAD = """\
# Parameters

Every parameter of `/v1/completions` and `/v1/chat/completions`, and what the server does with it. \
This file is written by `make parameters`, which really sends each, and a test keeps it true.

- **honoured**: it changes the request or the answer as its documentation says.
- **without effect**: taken on purpose, for clients that send it; it could not change the answer.
- **refused by name**: status 400 with OpenAI's error envelope, whose `param` is the parameter.

A value that asks for nothing (`echo: false`) is taken everywhere. An answer with early exits on \
equals the one with them off, draft figures and traces aside. `model`, `prompt`, `messages` and \
`stream` go without saying. `priority` asks for `--scheduling-policy priority`, and is refused by \
name without.

| parameter | value sent | completions, exits on | exits off | streamed, on | streamed, off \
| chat, exits on | exits off | streamed, on | streamed, off |
|---|---|---|---|---|---|---|---|---|---|
"""


class TableTokenizer(ByteTokenizer):
    """Of a model that thinks, with a token that begins every plain prompt."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Bytes behind the first token."""
        return [256] * add_special_tokens + super().encode(text)

    @property
    def card(self) -> Any:
        """Its template knows thoughts."""
        return replace(super().card, chat_template="{{ messages }}<think></think>")


@dataclass(frozen=True)
class Seen:
    """What one request did."""

    status: int
    answer: str  # without ids and times
    asked: str  # of the engine and the template

    def error_param(self) -> str | None:
        """The parameter that an error names."""
        param: str | None = json.loads(self.answer)["error"]["param"]
        return param


class Prober:
    """Sends cases to one server."""

    def __init__(self, client: TestClient, engine: FakeEngine) -> None:
        self._client = client
        self._engine = engine
        self._seen: dict[str, Seen] = {}  # by body and the model's text

    def outcome(self, case: Case, way: tuple[str, bool, bool]) -> str:
        """What becomes of a parameter.

        Raises:
            AssertionError: it is refused, but not by its name.
        """
        without, seen = self.seen(case, way, has_it=False), self.seen(case, way)
        if seen.status == 400:
            param = seen.error_param() or ""
            assert re.match(rf"{case.name}\b", param), f"{case.name}: {seen.answer}"
            return REFUSED
        assert seen.status == 200, f"{case.name}: {seen.answer}"
        return WITHOUT_EFFECT if seen == without else HONOURED

    def seen(self, case: Case, way: tuple[str, bool, bool], *, has_it: bool = True) -> Seen:
        """Send it, or the same request without it."""
        endpoint, stream, has_exits = way
        is_chat = endpoint == "chat"
        turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "you"}]
        body: dict[str, Any] = {"model": MODEL, "max_tokens": 80, "seed": 5, "stream": stream}
        body |= {"messages": turns} if is_chat else {"prompt": "hello"}
        body |= _beside(case, is_chat=is_chat)
        if case.name.startswith("max_"):
            del body["max_tokens"]
        if has_it:
            body |= case.fields(is_chat=is_chat)
        if not has_exits:
            body["early_exit"] = {**body.get("early_exit", {}), "enabled": False}
        key = json.dumps([case.text, endpoint, body])
        if key not in self._seen:
            self._seen[key] = self._send(PATHS[endpoint], body, case.text)
        return self._seen[key]

    def _send(self, path: str, body: Mapping[str, Any], text: str) -> Seen:
        self._engine.text = text
        self._engine.requests.clear()
        self._engine.tokenizer.variables = {}
        response = self._client.post(path, json=body)
        asked = [repr(replace(each, request_id="")) for each in self._engine.requests]
        return Seen(
            status=response.status_code,
            answer=_OF_THIS_ANSWER.sub("0", response.text),
            asked=repr((sorted(asked), self._engine.tokenizer.variables)),
        )


@contextmanager
def prober() -> Iterator[Prober]:
    """A prober with a server of its own."""
    engine = FakeEngine(tokenizer=TableTokenizer())
    engine.info = replace(engine.info, max_model_len=4096)
    with TestClient(fake_app(engine)) as client:
        yield Prober(client, engine)


def document(asked: Prober) -> str:
    """The whole of docs/parameters.md."""
    return _HEAD + "".join(_row(asked, case) for case in CASES)


def _row(asked: Prober, case: Case) -> str:
    value = f"`{json.dumps(case.value)}`"
    if case.chat_value is not None:
        value += f", chat: `{json.dumps(case.chat_value)}`"
    cells = [f"`{case.name}`", value, *(asked.outcome(case, way) for way in WAYS)]
    return f"| {' | '.join(cells)} |\n"


def _beside(case: Case, *, is_chat: bool) -> Mapping[str, Any]:
    """Completions count the log-probabilities they want."""
    beside = dict(case.beside)
    if not is_chat:
        beside.pop("tools", None)
        if "logprobs" in beside:
            beside["logprobs"] = 1
    return beside


if __name__ == "__main__":
    DOCUMENT.parent.mkdir(exist_ok=True)
    with prober() as one:
        DOCUMENT.write_text(document(one), encoding="utf-8")
