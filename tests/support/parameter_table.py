"""Generates docs/parameters.md, which says what the server does with every parameter.

Each parameter is sent to a server around a fake engine: to every endpoint that generates, streamed
and not, with early exits on and off, and to /v1/embeddings and /tokenize. A parameter is honoured
if the engine's request, the template's variables or the answer differ from those of a request
without it. Run this file to write the document.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from fake_engine import ByteTokenizer, FakeEngine
from live_server import MODEL, fake_app
from parameter_cases import CASES, EMBEDDINGS_CASES, RESPONSES_CASES, TOKENIZE_CASES, Case
from starlette.testclient import TestClient

DOCUMENT = Path(__file__).parents[2] / "docs" / "parameters.md"
HONOURED, WITHOUT_EFFECT, REFUSED = "honoured", "without effect", "refused by name"
PATHS = {
    "completions": "/v1/completions",
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "embeddings": "/v1/embeddings",
    "tokenize": "/tokenize",
}
Way: TypeAlias = tuple[str, bool, bool]  # endpoint, stream, exits
_FLAGS = ((False, True), (False, False), (True, True), (True, False))
WAYS: tuple[Way, ...] = tuple(
    (endpoint, *flags) for endpoint in ("completions", "chat") for flags in _FLAGS
)
RESPONSES_WAYS: tuple[Way, ...] = tuple(("responses", *flags) for flags in _FLAGS)
EMBEDDINGS_WAYS: tuple[Way, ...] = (("embeddings", False, True),)
TOKENIZE_WAYS: tuple[Way, ...] = (("tokenize", False, True),)

_OF_THIS_ANSWER = re.compile(
    r'(?<="id":)"[^"]+"|(?<="(?:item|call)_id":)"[^"]+"|(?<="created":)\d+|(?<="created_at":)\d+'
)
_TEMPLATE = "{{ messages }}{{ reasoning_effort }}<think></think>"
_HEAD = """\
# Parameters

Every parameter of the endpoints that generate, of `/v1/embeddings` and of `/tokenize`, and what \
the server does with it. `make parameters` really sends each of them and writes this file; a test \
keeps it true.

- **honoured**: it changes the request or the answer as its documentation says.
- **without effect**: accepted for clients that send it; it could not change the answer.
- **refused by name**: status 400 with OpenAI's error envelope, whose `param` is the parameter.

`temperature`, `top_p`, `top_k`, `min_p` and `repetition_penalty`, left out or null, have the \
value of `--override-generation-config`, else that of the model's `generation_config.json` \
(`--generation-config`), else OpenAI's default. `max_new_tokens` there bounds what `max_tokens` \
is by default. What `chat_template_kwargs` leaves out has the value that \
`--default-chat-template-kwargs` gives it, if any.

A value that asks for nothing (`echo: false`) is accepted everywhere. An answer with early exits \
on equals the one with them off, apart from draft figures and traces. `model`, `messages`, \
`input`, `stream` and a completion's `prompt` are not listed. `priority` needs \
`--scheduling-policy priority`, and `reasoning_effort` a chat template that knows it; without, \
each is refused by name. `min_tokens` and `ignore_eos` cannot put off the end of an answer whose \
[structure](structured_output.md) lets nothing follow.

## `/v1/completions` and `/v1/chat/completions`

| parameter | value sent | completions, exits on | exits off | streamed, on | streamed, off \
| chat, exits on | exits off | streamed, on | streamed, off |
|---|---|---|---|---|---|---|---|---|---|
"""
_RESPONSES_HEAD = """
## `/v1/responses`

Options of the chat API are refused here if this API has another name for them, or none. Those \
that the answer repeats (`metadata`, `prompt_cache_key`, …) are honoured by that alone.

| parameter | value sent | exits on | exits off | streamed, on | streamed, off |
|---|---|---|---|---|---|
"""
_EMBEDDINGS_HEAD = """
## `/v1/embeddings`

Nothing is generated here, so early exits have no part in it.

| parameter | value sent | |
|---|---|---|
"""
_TOKENIZE_HEAD = """
## `/tokenize`, with messages

A `prompt` takes `add_special_tokens`, `truncate_prompt_tokens`, `truncation_side` and \
`return_token_strs`; the options of a chat template need `messages`.

| parameter | value sent | |
|---|---|---|
"""


class TableTokenizer(ByteTokenizer):
    """A tokenizer with a token that begins every plain prompt."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the first token, if special tokens are wanted, and the bytes."""
        return [256] * add_special_tokens + super().encode(text)


@dataclass(frozen=True)
class Seen:
    """What one request led to."""

    status: int
    answer: str  # without ids and times
    asked: str  # requests to the engine, and variables of the template

    def error_param(self) -> str | None:
        """Return the parameter that an error names."""
        param: str | None = json.loads(self.answer)["error"]["param"]
        return param


class Prober:
    """Sends cases to one server, and remembers what they led to."""

    def __init__(self, client: TestClient, engine: FakeEngine) -> None:
        self._client = client
        self._engine = engine
        self._seen: dict[str, Seen] = {}  # by the model's text, endpoint and body

    def outcome(self, case: Case, way: Way) -> str:
        """Return what the server does with a parameter.

        Raises:
            AssertionError: if it is refused, but not by its name.
        """
        without, seen = self.seen(case, way, has_it=False), self.seen(case, way)
        if seen.status == 400:
            param = seen.error_param() or ""
            assert re.match(rf"{case.name}\b", param), f"{case.name}: {seen.answer}"
            return REFUSED
        assert seen.status == 200, f"{case.name}: {seen.answer}"
        return WITHOUT_EFFECT if seen == without else HONOURED

    def seen(self, case: Case, way: Way, *, has_it: bool = True) -> Seen:
        """Send the case, or the same request without its parameter."""
        endpoint, stream, has_exits = way
        body = _body(endpoint, stream) | _beside(case, endpoint)
        if case.name.startswith("max_"):
            body.pop("max_tokens", None)
            body.pop("max_output_tokens", None)
        if has_it:
            body |= case.fields(is_chat=endpoint != "completions")
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
    """Yield a prober with a server of its own."""
    engine = FakeEngine(tokenizer=TableTokenizer(_TEMPLATE))
    engine.info = replace(engine.info, max_model_len=4096)
    with TestClient(fake_app(engine)) as client:
        yield Prober(client, engine)


def document(asked: Prober) -> str:
    """Return the content of docs/parameters.md."""
    tables = (
        (_HEAD, CASES, WAYS),
        (_RESPONSES_HEAD, RESPONSES_CASES, RESPONSES_WAYS),
        (_EMBEDDINGS_HEAD, EMBEDDINGS_CASES, EMBEDDINGS_WAYS),
        (_TOKENIZE_HEAD, TOKENIZE_CASES, TOKENIZE_WAYS),
    )
    return "".join(
        head + "".join(_row(asked, case, ways) for case in cases) for head, cases, ways in tables
    )


def _row(asked: Prober, case: Case, ways: Sequence[Way]) -> str:
    value = f"`{json.dumps(case.value)}`"
    if case.chat_value is not None:
        is_both = ways == WAYS
        value = (
            f"{value}, chat: `{json.dumps(case.chat_value)}`"
            if is_both
            else f"`{json.dumps(case.chat_value)}`"
        )
    cells = [f"`{case.name}`", value, *(asked.outcome(case, way) for way in ways)]
    return f"| {' | '.join(cells)} |\n"


def _body(endpoint: str, stream: bool) -> dict[str, Any]:
    """Return the fields that every request to an endpoint has."""
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "you"}]
    if endpoint == "tokenize":
        return {"model": MODEL, "messages": turns}
    if endpoint == "embeddings":
        return {"model": MODEL, "input": "hello"}
    shared = {"model": MODEL, "seed": 5, "stream": stream}
    if endpoint == "responses":
        return {**shared, "input": turns, "max_output_tokens": 80}
    prompt = {"messages": turns} if endpoint == "chat" else {"prompt": "hello"}
    return {**shared, **prompt, "max_tokens": 80}


def _beside(case: Case, endpoint: str) -> Mapping[str, Any]:
    """Return the other fields of a case, in the endpoint's own form."""
    beside = dict(case.beside)
    if endpoint != "chat":
        beside.pop("messages", None)
    if endpoint == "completions":
        beside.pop("tools", None)
    if endpoint in ("completions", "responses") and beside.pop("logprobs", None):
        beside |= {"logprobs": 1} if endpoint == "completions" else {}
    return beside


if __name__ == "__main__":
    DOCUMENT.parent.mkdir(exist_ok=True)
    with prober() as one:
        DOCUMENT.write_text(document(one), encoding="utf-8")
