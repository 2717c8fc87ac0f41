"""Rows 67 to 70: operating the server."""

from acceptance import hygiene, overload
from acceptance.row import Row, row

_HTTP = "tests/server/test_http_protocol.py::"

OPERATION: tuple[Row, ...] = (
    row(
        67,
        "mixed requests, a third given up",
        "nothing leaks, nothing hangs, no status is unexplained",
        hygiene.mixed_traffic,
        note="300 requests here; 10,000 by `make aborts`; hours of them, with worker kills, by "
        "`make soak`; 10,000 odd ones by `make fuzz`.",
    ),
    row(
        68,
        "CRLF in any field, a model name of 1 MB, exceptions with paths",
        "one escaped line per request; a closed set of series; bodies without paths",
        hygiene.logs_and_metrics,
        hygiene.unexpected_errors,
    ),
    row(
        69,
        "a replica of Ray Serve dies, its queue is full, its proxy cancels",
        "does not apply",
        note="This server does not run inside Ray Serve: it has no replicas and no router. What a "
        "router in front of it needs is there: refusals with Retry-After before any header "
        "(rows 39 and 42), `/ready` for draining (57), streams that go on when a worker dies "
        "(54), and requests that end with their connection (46 to 48).",
    ),
    row(
        70,
        "more idle connections than allowed; scrapes all the while",
        "503 in the envelope; probes and `/metrics` are answered at once",
        overload.idle_connections,
        proofs=(f"{_HTTP}test_beyond_the_limit_only_probes_are_answered",),
        note="100 connections here, 5,000 by `adadecode bench overload`.",
    ),
)
