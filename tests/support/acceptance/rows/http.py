"""Rows 1 to 14: connections, request heads, and bodies as a whole."""

from acceptance import bad_bodies as bad
from acceptance import heads, messages
from acceptance.refusals import refuses, serves
from acceptance.row import Row, row
from acceptance.table_server import COMPLETIONS

_HTTP = "tests/server/test_http_protocol.py::"

HTTP: tuple[Row, ...] = (
    row(
        1,
        "truncated JSON, empty body, trailing bytes, UTF-16, byte order mark",
        "400 `invalid_json`",
        refuses(*bad.NO_JSON),
    ),
    row(
        2,
        "NaN, ±Infinity, 1e400 in any number, also in `logit_bias`",
        "400 that names the field",
        refuses(*bad.NO_NUMBERS),
    ),
    row(
        3,
        "JSON nested 2,000 and 200,000 deep, a tool's schema 1,000 deep",
        "400; the event loop is never blocked for 50 ms",
        messages.deep_bodies,
    ),
    row(
        4,
        "half a surrogate pair, invalid UTF-8; NUL in a prompt",
        "400 `invalid_json`; NUL: 200",
        refuses(*bad.NO_TEXT),
        serves((COMPLETIONS, {"prompt": "a\0b"})),
    ),
    row(
        5,
        '`n` of 10^18, "3", true, 1.0, 5,000 digits; the same of other integers',
        "400 that names the field",
        refuses(*bad.NO_INTEGERS),
        note="A number of more than 4,300 digits is not JSON to the parser: 400 `invalid_json` "
        "without a name.",
    ),
    row(6, 'body `[1]`, `null`, `"x"`', "400", refuses(*bad.NO_OBJECTS)),
    row(
        7,
        "no or another Content-Type, multipart, a gzip bomb",
        "415; nothing is unpacked",
        heads.content_types,
    ),
    row(
        8,
        "body beyond the limit, with a length and chunked; of a quarter million values",
        "413 `request_too_large`; memory grows by less than twice the limit; the event loop is "
        "never blocked for 50 ms",
        heads.large_bodies,
        messages.many_values,
        proofs=("tests/server/test_body.py::test_bodies_of_too_many_values_are_refused",),
    ),
    row(
        9,
        "headers of 70 KB to 2 MB, 500 headers, a million chunks of 6 bytes",
        "431, 400 or a closed connection; memory stays flat",
        heads.large_heads,
        proofs=(
            f"{_HTTP}test_large_heads_are_refused",
            f"{_HTTP}test_many_headers_are_refused_by_name",
            f"{_HTTP}test_a_flood_of_tiny_chunks_is_refused_and_ordinary_chunks_are_not",
        ),
    ),
    row(
        10,
        "heads and bodies that drip in, on 1,000 connections",
        "closed in time (10 s and 30 s; 0.5 s here), bodies with 408; others do not notice",
        heads.slow_clients,
        proofs=(
            f"{_HTTP}test_a_head_that_drips_in_is_cut_off",
            f"{_HTTP}test_a_connection_that_says_nothing_is_closed",
            f"{_HTTP}test_an_answered_request_whose_body_drips_on_is_cut_off",
            f"{_HTTP}test_a_body_that_drips_in_is_answered_408",
        ),
    ),
    row(
        11,
        "Host `a/v1/models?`, absolute-form target, `//v1`, `/v1/../health`, `%2e`",
        "401 all the same",
        heads.odd_targets,
    ),
    row(
        12,
        "unknown path, wrong method",
        "404, 405 in OpenAI's envelope",
        heads.unknown_routes,
    ),
    row(
        13,
        "key missing, wrong, empty, in another case, a prefix of one, another scheme",
        "401 `invalid_api_key` on every route but the probes and the page's files",
        heads.keys,
    ),
    row(
        14,
        "X-Request-Id of 5 KB, with CRLF, with other letters; the same twice at once",
        "echoed in 128 safe characters; both are served, each with its own text",
        heads.request_ids,
    ),
)
