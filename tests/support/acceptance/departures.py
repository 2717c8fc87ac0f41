"""Rows 46 to 51: clients that disconnect, return, or stop reading."""

import json
import random
import socket
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import httpx
from live_server import MODEL

from acceptance.parrot import SEED, Parrot, say
from acceptance.sockets import connection, hang_up, send
from acceptance.table_server import CHAT, COMPLETIONS, Serve, TableServer

_SOON_S = 1.0
_SHARED = "shared prefix of many requests, " * 4  # 128 tokens: whole blocks
_LONG_TOKEN = 4  # a token whose text the test makes very long


def in_the_queue(serve: Serve) -> None:
    """A client that disconnects while it is queued costs no token."""
    with serve(parrot=Parrot(step_time_s=0.005), max_num_seqs=1) as server:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(server.complete, "first", max_tokens=100)
            _until(server, num_running=1)
            with connection(server) as sock:
                send(sock, COMPLETIONS, _body("left"))
                _until(server, num_waiting=1)
            _until(server, num_waiting=0)
            assert first.result().status_code == 200
        assert tuple(b"left") not in server.prompts()


def at_any_moment(serve: Serve) -> None:
    """Everything is freed at once, whether a client leaves in prefill, in decode or at the end."""
    chances = random.Random(0)
    slow = Parrot(step_time_s=0.002)
    with serve(parrot=slow, max_num_batched_tokens=32) as server, server.company():
        for number in range(40):
            with connection(server) as sock:
                prompt = f"{number:03}" * (100 if number % 4 == 0 else 3)
                send(sock, COMPLETIONS, _body(prompt, stream=True, max_tokens=20))
                if number % 4:
                    sock.recv(chances.choice((1, 1000, 10_000)))
                time.sleep(chances.random() * 0.03)
                if number % 2:
                    hang_up(sock)
            _until_only_canaries(server)


def without_a_stream(serve: Serve) -> None:
    """The server also notices when a client leaves that waits for a whole answer."""
    with serve(parrot=Parrot(step_time_s=0.02)) as server:
        for path, prompt in ((COMPLETIONS, {"prompt": "a"}), (CHAT, {"messages": _user("a")})):
            with connection(server) as sock:
                send(sock, path, {"model": MODEL, "max_tokens": 200, **prompt})
                _until(server, num_running=1)
            _until(server, num_running=0)
        deadline = time.monotonic() + 5
        while (lines := _statuses(server)).count(499) < 2:
            assert time.monotonic() < deadline, lines
            time.sleep(0.01)


def again_and_again(serve: Serve) -> None:
    """Requests with one prefix are aborted after 15 and 19 ms and sent again, beside others."""
    with serve(parrot=Parrot(step_time_s=0.001), max_num_seqs=4) as server:
        right = server.parrot.text_after(_SHARED, 24)
        with ThreadPoolExecutor(6) as pool:
            for number in range(12):
                body = _body(_SHARED, stream=True, max_tokens=200)
                leaving = [pool.submit(_leave_after, server, s, body) for s in (0.015, 0.019)]
                same = pool.submit(server.text, _SHARED, max_tokens=24)
                other = pool.submit(server.text, f"{number} other", max_tokens=24)
                for each in leaving:
                    each.result()
                assert server.text(_SHARED, max_tokens=24) == right
                assert same.result() == right
                assert other.result() == server.parrot.text_after(f"{number} other", 24)


def of_several_choices(serve: Serve) -> None:
    """All choices end when their client leaves; otherwise each ends once."""
    with serve(parrot=Parrot(step_time_s=0.003)) as server:
        with connection(server) as sock:
            send(sock, COMPLETIONS, _body("four", stream=True, n=4, max_tokens=200))
            _until(server, num_running=4)
            sock.recv(100)
        _until(server, num_running=0)
        answer = server.complete("four", stream=True, n=4, stop=["e", "m"], max_tokens=60)
        ends: Counter[int] = Counter()
        for choice in _choices(answer):
            assert not ends[choice["index"]], "nothing comes after the end"
            ends[choice["index"]] += choice["finish_reason"] is not None
        assert ends == Counter(range(4))


def without_reading(serve: Serve) -> None:
    """A client that stops reading is disconnected, and nobody waits for it."""
    with serve(write_timeout=0.3) as server:
        spell = server.engine.tokenizer.token_bytes
        long = b"long " * 8000
        server.engine.tokenizer.token_bytes = (  # type: ignore[method-assign]
            lambda token_id: long if token_id == _LONG_TOKEN else spell(token_id)
        )
        with connection(server) as sock, server.company():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            words = say(bytes([_LONG_TOKEN] * 240))
            send(sock, COMPLETIONS, _body(words, stream=True, max_tokens=250))
            deadline = time.monotonic() + 10
            while not _has_ended(server):
                assert time.monotonic() < deadline
                time.sleep(0.01)


def _body(prompt: object, **fields: object) -> dict[str, object]:
    return {"model": MODEL, "prompt": prompt, "seed": SEED, **fields}


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _until(server: TableServer, **counts: int) -> None:
    """Wait until the engine's counts are these, for as long as noticing a disconnect may take."""
    deadline = time.monotonic() + _SOON_S
    while True:
        stats = server.on_loop(server.engine.stats)
        if all(getattr(stats, name) == count for name, count in counts.items()):
            return
        assert time.monotonic() < deadline, (counts, stats)
        time.sleep(0.001)


def _until_only_canaries(server: TableServer) -> None:
    deadline = time.monotonic() + _SOON_S
    while server.on_loop(lambda: server.engine.num_unread) > 1:
        assert time.monotonic() < deadline, "a request has outlived its client"
        time.sleep(0.001)


def _has_ended(server: TableServer) -> bool:
    """Whether a request with a long prompt has ended."""
    lines = [json.loads(line) for line in server.access_lines()]
    return any(line.get("prompt_tokens", 0) > 100 for line in lines)


def _leave_after(server: TableServer, seconds: float, body: Mapping[str, object]) -> None:
    with connection(server) as sock:
        send(sock, COMPLETIONS, body)
        time.sleep(seconds)


def _statuses(server: TableServer) -> list[int | None]:
    return [json.loads(line)["status"] for line in server.access_lines()]


def _choices(answer: httpx.Response) -> list[dict[str, object]]:
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    return [choice for event in events for choice in json.loads(event)["choices"]]
