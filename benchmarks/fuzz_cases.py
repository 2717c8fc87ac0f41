"""Makes the cases that the fuzzer sends, from requests with odd fields to bytes that are not HTTP.

A case depends on seed and number alone, so that one that found something can be sent again. This
module knows no sockets and no server: the routes and their fields come from the OpenAPI document.
"""

import copy
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["fields", "bytes", "head", "raw"]

_KINDS: tuple[Kind, ...] = ("fields", "bytes", "head", "raw")
_WEIGHTS = (65, 15, 8, 12)
_MAX_TOKENS = 6
_USER = {"role": "user", "content": "Say a word about rain."}
_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
    },
}
# Values that may be valid somewhere, and values that are likely to cause trouble.
_PLAUSIBLE: tuple[Any, ...] = (
    *(0, 1, 2, 3, 0.5, 0.8, True, False, None, "a", "\n", "auto", "none", "required", "json"),
    *([], [1, 2], ["a", "b"], [[1], [2, 3]], {}, {"5": 1.5}, {"enabled": False}, [_TOOL], [_USER]),
    *({"include_usage": True}, {"type": "json_object"}, {"max_draft_tokens": 1}, "high"),
)
_EVIL: tuple[Any, ...] = (
    *(-1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 1.0, -0.0, 1e308, 1e-320, "3", "true"),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "\x00", "\ud800", "a\r\nX: y", "../.."),
    *("a" * 5000, "<|im_end|>", "{{ 7 * 7 }}", "%s%n", "😀" * 50, [None], [[[[[]]]]], {"": {}}),
    *([{}] * 3, ["a"] * 300, list(range(300)), {"$ref": "#"}, {"type": "__proto__"}),
    *({"url": "http://127.0.0.1:9/"}, {"type": "image_url", "image_url": {"url": "file:///x"}}),
)
_ODD_PATHS = (
    "/",
    "//",
    "/v1",
    "/v1/models/%00",
    "/../etc",
    "/v1/chat/completions/",
    "*",
    "/%2e%2e",
)
_ODD_HEADERS = (
    ("Content-Type", "text/plain"),
    ("Content-Type", "application/json; charset=utf-16"),
    ("Content-Encoding", "gzip"),
    ("Expect", "100-continue"),
    ("Transfer-Encoding", "chunked"),
    ("Content-Length", "-1"),
    ("Host", "a/v1/models?"),
    ("X-Request-Id", "a" * 3000),
    ("Authorization", "Bearer \xff"),
    ("Cookie", "; " * 500),
    ("Upgrade", "websocket"),
    ("Range", "bytes=0-1"),
)
_ODD_PIECES = (b"\xef\xbb\xbf", b"\x00", b",", b"}", b"1e400", b'"')
_ODD_CHUNKS = (b"5\r\nhello\r\n", b"f" * 16 + b"\r\n", b"-1\r\n", b"0\r\n\r\n", b"zz")


@dataclass(frozen=True, slots=True)
class Case:
    """One malformed request to send."""

    number: int
    kind: Kind
    data: bytes  # everything that is sent over the socket

    @property
    def is_http(self) -> bool:
        """Whether it is a complete request, which must be answered."""
        return self.kind in ("fields", "bytes")


@dataclass(frozen=True, slots=True)
class Route:
    """An operation that takes a JSON body."""

    path: str
    fields: Sequence[str]  # names of the parameters in its body
    bodies: Sequence[Mapping[str, Any]]  # valid bodies


def routes_of(document: Mapping[str, Any], model: str) -> list[Route]:
    """Return the POST operations of an OpenAPI document."""
    routes = []
    for path, operations in document["paths"].items():
        content = operations.get("post", {}).get("requestBody", {}).get("content", {})
        schema = content.get("application/json", {}).get("schema", {})
        name = schema.get("$ref", "").rpartition("/")[2]
        if name:
            fields = sorted(document["components"]["schemas"][name].get("properties", {}))
            routes.append(Route(path, fields, _bodies(path, model)))
    return routes


def make_case(seed: int, number: int, routes: Sequence[Route], paths: Sequence[str]) -> Case:
    """Make the case with a number.

    Args:
        paths: Every path of the server.
    """
    choose = random.Random(f"{seed}/{number}")
    kind = choose.choices(_KINDS, _WEIGHTS)[0]
    route = choose.choice(routes)
    body = copy.deepcopy(dict(choose.choice(route.bodies)))
    if kind == "fields":
        data = _request("POST", route.path, _serialized(_with_odd_fields(choose, body, route)))
    elif kind == "bytes":
        data = _request("POST", route.path, _with_odd_bytes(choose, _serialized(body)))
    elif kind == "head":
        data = _odd_head(choose, choose.choice([*paths, *_ODD_PATHS]), _serialized(body))
    else:
        data = _no_http(choose, _request("POST", route.path, _serialized(body)))
    return Case(number, kind, data)


def _bodies(path: str, model: str) -> list[dict[str, Any]]:
    """Return valid bodies of a route; one that is not known here gets a mix of all fields."""
    plain = {"model": model, "max_tokens": _MAX_TOKENS}
    known: dict[str, list[dict[str, Any]]] = {
        "/v1/completions": [
            {**plain, "prompt": "It rains", "temperature": 0},
            {**plain, "prompt": [5, 6, 7], "stream": True, "logprobs": 2, "seed": 3},
            {**plain, "prompt": "It rains", "max_tokens": 0, "echo": True, "logprobs": 1},
            {**plain, "prompt": [[5], [6, 7]], "prompt_logprobs": 2, "allowed_token_ids": [5, 6]},
            {**plain, "prompt": ["a", "b"], "n": 2, "stop": ["."], "logit_bias": {"9": -5}},
        ],
        "/v1/chat/completions": [
            {**plain, "messages": [_USER], "temperature": 0.8, "seed": 1},
            {
                **plain,
                "messages": [{"role": "system", "content": "Be brief."}, _USER],
                "stream": True,
                "stream_options": {"include_usage": True},
                "logprobs": True,
                "top_logprobs": 2,
            },
            {**plain, "messages": [_USER], "tools": [_TOOL], "tool_choice": "auto"},
            {
                **plain,
                "messages": [
                    _USER,
                    {"role": "assistant", "content": "Wet."},
                    {"role": "user", "content": [{"type": "text", "text": "And snow?"}]},
                ],
                "early_exit": {"return_trace": True},
            },
        ],
        "/v1/responses": [
            {"model": model, "input": "Rain?", "max_output_tokens": 16, "store": False},
            {"model": model, "input": [_USER], "max_output_tokens": 16, "stream": True},
        ],
        "/v1/embeddings": [
            {"model": model, "input": "Rain"},
            {"model": model, "input": [[5, 6], [7]], "encoding_format": "base64", "dimensions": 8},
        ],
        "/tokenize": [
            {"model": model, "prompt": "It rains"},
            {"model": model, "messages": [_USER], "return_token_strs": True},
        ],
        "/detokenize": [{"model": model, "tokens": [5, 6, 7]}],
    }
    everything = {**plain, "prompt": "a", "input": "a", "messages": [_USER], "tokens": [5]}
    return known.get(path, [everything])


def _with_odd_fields(
    choose: random.Random, body: dict[str, Any], route: Route
) -> dict[str, Any] | list[Any]:
    """Make one to three changes anywhere in a body."""
    for _ in range(choose.choice((1, 1, 2, 3))):
        change = choose.random()
        value = copy.deepcopy(choose.choice(_EVIL if choose.random() < 0.35 else _PLAUSIBLE))
        if change < 0.45 and route.fields:
            body[choose.choice(route.fields)] = value
        elif change < 0.85:
            parent, key = _somewhere(choose, body)
            if choose.random() < 0.2:
                del parent[key]
            elif choose.random() < 0.15:
                parent[key] = _nested(choose.choice((3, 40, 3000)), parent[key])
            else:
                parent[key] = value
        else:
            body[choose.choice(("unknown", "__class__", "constructor", "", "messages[0]"))] = value
        if not body:
            break
    return [body] if choose.random() < 0.02 else body


def _somewhere(choose: random.Random, tree: dict[str, Any]) -> tuple[Any, Any]:
    """Choose a place in a JSON tree; return the container and the key in it."""
    places: list[tuple[Any, Any]] = []
    containers: list[Any] = [tree]
    while containers:
        container = containers.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in keys:
            places.append((container, key))
            if isinstance(container[key], dict | list):
                containers.append(container[key])
    return choose.choice(places)


def _nested(depth: int, value: Any) -> Any:
    """Nest a value in `depth` lists; a depth that json cannot write becomes a marker."""
    return f"@{depth}@" if depth > 500 else _nested(depth - 1, [value]) if depth else value


def _serialized(body: Any) -> bytes:
    text = json.dumps(body, ensure_ascii=False)
    text = text.replace('"@3000@"', "[" * 3000 + "]" * 3000)
    return text.encode("utf-8", "surrogatepass")


def _with_odd_bytes(choose: random.Random, content: bytes) -> bytes:
    """Flip, delete, duplicate or insert bytes at random places."""
    data = bytearray(content)
    for _ in range(choose.randint(1, 4)):
        place = choose.randrange(len(data) + 1)
        change = choose.randrange(5)
        if change == 0 and place < len(data):
            data[place] ^= 1 << choose.randrange(8)
        elif change == 1:
            data[place:place] = choose.randbytes(choose.randint(1, 8))
        elif change == 2:
            del data[place : place + choose.randint(1, 20)]
        elif change == 3:
            data[place:place] = data[place : place + choose.randint(1, 40)]
        else:
            data[place:place] = choose.choice(_ODD_PIECES)
    return bytes(data)


def _odd_head(choose: random.Random, path: str, body: bytes) -> bytes:
    """Make a request with an odd request line and odd headers."""
    path = path.replace("{model_id}", "a").replace("{response_id}", "resp_1")
    path += choose.choice(("", "", "?stream=true", "?a=" + "b" * 300, "?%ff", "#x", "%20"))
    method = choose.choice(("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get"))
    return _request(method, path, body, choose.sample(_ODD_HEADERS, choose.randint(0, 2)))


def _no_http(choose: random.Random, request: bytes) -> bytes:
    """Make random bytes, or a request that is cut off, has odd bytes in its head or odd chunks."""
    change = choose.randrange(4)
    if change == 0:
        return choose.randbytes(choose.choice((1, 10, 300, 5000, 100_000)))
    if change == 1:
        return request[: choose.randrange(len(request))]
    head, _, body = request.partition(b"\r\n\r\n")
    if change == 2:
        return _with_odd_bytes(choose, head) + b"\r\n\r\n" + body
    chunk = choose.choice(_ODD_CHUNKS)
    head = head.replace(b"Content-Length", b"X-Length")
    return head + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * choose.randint(1, 30)


def _request(method: str, path: str, body: bytes, headers: Sequence[tuple[str, str]] = ()) -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Connection: close",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body
