"""Rows 67 and 68: mixed traffic, and what is logged and counted of it."""

import json
import random
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from live_server import MODEL

from acceptance.parrot import Parrot, say
from acceptance.refusals import assert_envelope
from acceptance.sockets import connection, resident_bytes, send, status_of
from acceptance.table_server import CHAT, COMPLETIONS, SECRET, Serve, TableServer

_CRLF = "a\r\nINJECTED: yes"
_SERIES = re.compile(r"^(\w[\w:]*)(\{[^}]*\})? ", re.MULTILINE)


def logs_and_metrics(serve: Serve) -> None:
    """Requests leave one escaped log line each, no new metric series, and none of their text."""
    with serve() as server:
        series = _series(server)
        bodies: tuple[tuple[str, dict[str, object]], ...] = (
            (COMPLETIONS, {"model": _CRLF, "prompt": SECRET}),
            (COMPLETIONS, {"model": SECRET * 80_000, "prompt": "a"}),
            (COMPLETIONS, {"model": MODEL, "prompt": SECRET, "user": _CRLF, "max_tokens": 2}),
            (COMPLETIONS, {"model": MODEL, "prompt": SECRET, "stop": _CRLF, "temperature": 9}),
            (COMPLETIONS, {"model": MODEL, "prompt": SECRET, SECRET: 1, _CRLF: 2, "n": 0}),
            (CHAT, {"model": MODEL, "messages": [{"role": SECRET, "content": SECRET}]}),
            (CHAT, {"model": MODEL, "messages": [{"role": "user", "content": [{"type": SECRET}]}]}),
        )
        for path, body in bodies:
            answer = server.ask(path, body)
            if answer.status_code != 200:
                assert_envelope(answer)
                assert "INJECTED" not in answer.text
        status_of(server, b"/v1/%0d%0aINJECTED:%20yes", b"Host: x")
        lines = server.access_lines()
        for line in lines:
            assert "\n" not in line
            assert SECRET not in line
        paths = [json.loads(line)["path"] for line in lines]
        assert paths.count("/v1/\r\nINJECTED: yes") == 1
        assert paths.count(CHAT) == 2, "one line per request"
        assert _series(server) == series


def unexpected_errors(serve: Serve) -> None:
    """The text of an unexpected exception never reaches the client."""
    with serve(parrot=Parrot()) as server:
        server.allowed_errors |= {"server.middleware", "server.answer"}

        def fail(*_: object, **__: object) -> None:
            raise RuntimeError(f"{SECRET} at 0xdeadbeef in /secret/place.py")

        admit, server.engine.admit = server.engine.admit, fail  # type: ignore[method-assign]
        try:
            for stream in (False, True):
                answer = server.complete("a", stream=stream)
                assert answer.status_code == 500
                assert assert_envelope(answer)["code"] == "internal_error"
        finally:
            server.engine.admit = admit  # type: ignore[method-assign]
        server.log.records.clear()  # the server's own log may contain the text


def mixed_traffic(serve: Serve) -> None:
    """Hundreds of requests of all kinds, a third of them aborted, end as they should."""
    chances = random.Random(1)
    parrot = Parrot(num_blocks=60, acceptance=0.6)
    limits = {"max_num_seqs": 12, "max_num_batched_tokens": 64}
    with serve(parrot=parrot, **limits) as server, ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda seed: _mixed(server, seed), range(40)))
        before = resident_bytes()
        list(pool.map(lambda _: _mixed(server, chances.randrange(10**6)), range(260)))
        assert resident_bytes() - before < 20_000_000
        assert threading.active_count() < 60
        statuses = {json.loads(line)["status"] for line in server.access_lines()}
        assert statuses <= {200, 400, 499}


def _mixed(server: TableServer, seed: int) -> None:
    chances = random.Random(seed)
    prompt = f"{'shared ' * chances.randrange(6)}{chances.randrange(40)}"
    kind = seed % 10
    if kind < 3:
        with connection(server) as sock:
            body = {"model": MODEL, "prompt": prompt, "max_tokens": 60, "stream": kind > 0}
            send(sock, COMPLETIONS, body)
            time.sleep(chances.random() * 0.04)
    elif kind == 3:
        assert server.complete(prompt, n=0).status_code == 400
    elif kind == 4:
        assert server.text(say(prompt), max_tokens=80) == prompt
    else:
        num = chances.randrange(1, 40)
        assert server.text(prompt, max_tokens=num) == server.parrot.text_after(prompt, num)


def _series(server: TableServer) -> set[str]:
    text = server.client.get("/metrics").text
    return {"".join(match.groups("")) for match in _SERIES.finditer(text)}
