"""Streaming and disconnects over a real connection."""

import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from live_server import MODEL, fake_app, serving

from engine.errors import EngineFailed, EngineOverloaded, EngineStopped
from engine.request import FinishReason

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def body_for(path: str, **fields: object) -> dict[str, object]:
    if path == CHAT:
        prompt: dict[str, object] = {"messages": [{"role": "user", "content": "hi"}]}
    else:
        prompt = {"prompt": "hi"}
    return {"model": MODEL, "stream": True, **prompt, **fields}


def events(url: str, path: str, **fields: object) -> Iterator[str]:
    """Yield the data of each event as it arrives."""
    with httpx.stream("POST", url + path, json=body_for(path, **fields)) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line:
                assert line.startswith(("data: ", ": ")), line
            if line.startswith("data: "):
                yield line.removeprefix("data: ")


def chunks(url: str, path: str, **fields: object) -> list[dict]:
    *data, done = events(url, path, **fields)
    assert done == "[DONE]"
    return [json.loads(event) for event in data]


def wait_until(condition, timeout_s: float = 30.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(condition())


def test_a_chat_stream_is_role_then_text_then_one_end(live_url):
    stream = chunks(live_url, CHAT)

    deltas = [chunk["choices"][0]["delta"] for chunk in stream]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta["content"] for delta in deltas[1:-1]) == "Hello world!"
    assert deltas[-1] == {}
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in stream]
    assert reasons == [None] * (len(stream) - 1) + ["stop"]
    assert {chunk["object"] for chunk in stream} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in stream}) == 1
    assert all(chunk["usage"] is None for chunk in stream)
    assert "metrics" in stream[-1]


def test_a_completion_stream(live_url):
    stream = chunks(live_url, COMPLETIONS, max_tokens=5)

    assert "".join(chunk["choices"][0]["text"] for chunk in stream) == "Hello"
    assert [chunk["choices"][0]["finish_reason"] for chunk in stream] == [None] * 5 + ["length"]
    assert {chunk["object"] for chunk in stream} == {"text_completion"}


@pytest.mark.parametrize("fields", [{}, {"stop": "!"}, {"return_token_ids": True}])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_usage_comes_last_without_choices_and_equals_the_whole_answers(live_url, path, fields):
    *pieces, last = chunks(live_url, path, stream_options={"include_usage": True}, **fields)
    whole = httpx.post(live_url + path, json=body_for(path, stream=False, **fields)).json()

    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert last["metrics"] == whole["metrics"]
    assert all(piece["usage"] is None and "metrics" not in piece for piece in pieces)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_choices_of_a_prompt_found_what_its_first_one_found_in_the_cache(engine, live_url, path):
    engine.num_cached_tokens = lambda request: 1 if request.request_id.endswith("-0") else 2
    options = {"include_usage": True, "continuous_usage_stats": True}
    *pieces, last = chunks(live_url, path, n=2, stream_options=options)
    whole = httpx.post(live_url + path, json=body_for(path, n=2, stream=False)).json()

    for answer in (last, whole):
        assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}
    for piece in pieces:
        found = piece["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert found == 1 + piece["choices"][0]["index"], "its own"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_what_stopped_it_is_told(live_url, path, stream):
    if stream:
        end = chunks(live_url, path, stop=["?", " "])[-1]
    else:
        body = body_for(path, stop=["?", " "], stream=False)
        end = httpx.post(live_url + path, json=body).json()

    assert (end["choices"][0]["finish_reason"], end["choices"][0]["stop_reason"]) == ("stop", " ")


def test_usage_on_every_chunk(live_url):
    options = {"include_usage": True, "continuous_usage_stats": True}
    *pieces, _ = chunks(live_url, COMPLETIONS, stream_options=options, max_tokens=3)

    assert [piece["usage"]["completion_tokens"] for piece in pieces] == [1, 2, 3, 3]


def test_usage_on_every_chunk_is_part_of_usage(live_url):
    stream = chunks(live_url, COMPLETIONS, stream_options={"continuous_usage_stats": True})

    assert all(chunk["usage"] is None for chunk in stream)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_choices_interleave_and_each_ends_once(engine, live_url, path):
    engine.token_delay_s = 0.002
    stream = chunks(live_url, path, n=3)

    ends = [c["choices"][0]["index"] for c in stream if c["choices"][0]["finish_reason"]]
    assert sorted(ends) == [0, 1, 2]
    order = [chunk["choices"][0]["index"] for chunk in stream]
    assert order != sorted(order)
    assert all("metrics" not in chunk for chunk in stream)


def test_logprobs_and_traces_come_with_their_tokens(live_url):
    stream = chunks(live_url, CHAT, logprobs=True, early_exit={"return_trace": True}, max_tokens=3)

    texts = [chunk["choices"][0] for chunk in stream[1:-1]]
    assert [choice["logprobs"]["content"][0]["token"] for choice in texts] == ["H", "e", "l"]
    traces = [choice["early_exit_trace"][0] for choice in texts]
    assert [token["token"] for token in traces] == ["H", "e", "l"]
    body = body_for(CHAT, stream=False, early_exit={"return_trace": True}, max_tokens=3)
    (whole,) = httpx.post(live_url + CHAT, json=body).json()["choices"]
    assert whole["early_exit_trace"] == traces


def test_tokens_without_text_yet_make_no_chunk_unless_they_have_logprobs(engine, live_url):
    engine.text = "é!"  # the first token is half a character

    assert len(chunks(live_url, COMPLETIONS)) == 3
    assert len(chunks(live_url, COMPLETIONS, logprobs=0)) == 4
    _, first, *others = chunks(live_url, CHAT, logprobs=True)
    assert first["choices"][0]["delta"] == {"content": ""}
    assert len(others) == 3


def test_tokens_are_sent_as_they_come(engine, live_url):
    engine.token_delay_s = 0.2
    stream = events(live_url, CHAT)

    assert json.loads(next(stream))
    assert engine.open_ids, "the first token is here while the others are being made"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (EngineOverloaded("full", retry_after_s=7), "server_is_overloaded"),
        (EngineStopped("stop"), "shutting_down"),
    ],
)
def test_a_refused_request_has_a_status(engine, live_url, path, stream, refusal, code):
    engine.refusal = refusal
    response = httpx.post(live_url + path, json=body_for(path, stream=stream, n=2))

    assert response.status_code == 503
    assert response.json()["error"]["code"] == code
    assert response.headers["Retry-After"] == ("7" if code == "server_is_overloaded" else "1")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"failure": EngineFailed("0xdeadbeef at /secret/path")}, "engine_failed"),
        ({"failure": RuntimeError("0xdeadbeef at /secret/path")}, "internal_error"),
        ({"finish_with": FinishReason.ERROR}, "request_failed"),
        ({"finish_with": FinishReason.ABORT}, "shutting_down"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_on_the_way_says_so_and_nothing_more(engine, live_url, change, code, stream):
    vars(engine).update(change)
    if stream:
        *pieces, error, done = events(live_url, CHAT)
        assert len(pieces) == 4, "the role and three tokens"
        assert done == "[DONE]"
    else:
        response = httpx.post(live_url + CHAT, json=body_for(CHAT, stream=False))
        error = response.text
        assert response.status_code == (503 if code == "shutting_down" else 500)
    assert json.loads(error)["error"]["code"] == code
    assert "secret" not in error


def test_a_silent_stream_is_kept_alive(engine):
    engine.token_delay_s = 2.0  # twenty intervals: even a slow machine sends a comment
    with (
        serving(fake_app(engine, sse_keep_alive_interval=0.1)) as url,
        httpx.stream("POST", url + CHAT, json=body_for(CHAT, max_tokens=2)) as response,
    ):
        lines = response.iter_lines()
        first = next(lines)
        engine.token_delay_s = 0.0  # for the tokens after the first
        rest = list(lines)

    assert first == ": keep-alive", "also before the first token"
    assert rest[-2] == "data: [DONE]"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_the_generation(engine, live_url, path, n, stream):
    engine.text, engine.token_delay_s = "x" * 120, 0.1  # whole answers would take 12 s
    host, port = live_url.removeprefix("http://").split(":")
    content = json.dumps(body_for(path, stream=stream, n=n)).encode()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        assert wait_until(lambda: len(engine.open_ids) == n)
        if stream:
            connection.recv(100)

    assert wait_until(lambda: not engine.open_ids)
    assert len(engine.aborted) == n


@pytest.mark.parametrize(
    "more", [b"\r\n", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"POST /v1/comp"]
)
def test_a_client_that_leaves_is_noticed_whatever_it_has_sent_on_top(engine, live_url, more):
    engine.token_delay_s = 30
    host, port = live_url.removeprefix("http://").split(":")
    content = json.dumps(body_for(CHAT, stream=False)).encode()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" % CHAT.encode()
            + b"Content-Length: %d\r\n\r\n" % len(content)
            + content
        )
        assert wait_until(lambda: len(engine.open_ids) == 1)
        connection.sendall(more)
        time.sleep(0.1)

    assert wait_until(lambda: len(engine.aborted) == 1, timeout_s=10)


def test_a_client_that_leaves_before_the_first_token_ends_the_generation(engine, live_url):
    engine.token_delay_s = 30
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(live_url + CHAT, json=body_for(CHAT), timeout=0.5)

    # Sooner than the wait for a first output ends by itself.
    assert wait_until(lambda: len(engine.aborted) == 1, timeout_s=10)


def test_streams_do_not_disturb_each_other(live_url):
    texts = []
    first = events(live_url, COMPLETIONS)
    next(first)
    for _ in range(3):
        texts.append("".join(c["choices"][0]["text"] for c in chunks(live_url, COMPLETIONS)))
    rest = [json.loads(event)["choices"][0]["text"] for event in list(first)[:-1]]

    assert texts == ["Hello world!"] * 3
    assert "".join(rest) == "ello world!"
