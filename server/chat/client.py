"""The HTTP side of the chat: one streamed completion at a time. Prints nothing."""

import json
import ssl
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

# Longer than the keep-alive interval (15 s by default) at which a silent stream gets a comment.
_TIMEOUT = httpx.Timeout(120.0, connect=5.0)
_OPENAI_TEMPERATURE = 1  # of a request that names none


class ChatError(Exception):
    """The server cannot be reached or refused the request; the message is for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A rejected draft in an answer's trace."""

    text: str
    exit_layer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedToken:
    """One token of an answer, its exit layer, and the drafts rejected before it."""

    text: str
    exit_layer: int
    is_early: bool
    rejected: tuple[Draft, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of an answer. Usage and metrics come with the last one."""

    text: str = ""
    trace: tuple[TracedToken, ...] = ()
    num_tokens: int | None = None  # of the whole answer
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What the server says of a model."""

    name: str
    has_temperature: bool = False  # a default of its own, other than OpenAI's


class ChatClient:
    """A client of one server."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """
        Raises:
            ChatError: when the address is none.
        """
        # As bytes: httpx encodes text as ASCII, and a key may be anything.
        bearer = f"Bearer {api_key}".encode(errors="surrogateescape")
        headers = {b"Authorization": bearer} if api_key else {}
        base = url.rstrip("/").removesuffix("/v1")
        try:
            self._http = httpx.Client(base_url=base, headers=headers, timeout=_TIMEOUT)
        except httpx.InvalidURL as error:
            raise ChatError(f"{url} is no address: {error}") from None
        if self._http.base_url.scheme not in ("http", "https"):
            raise ChatError(f"{url} is no address: it should begin with http:// or https://")

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def model_card(self, name: str | None = None) -> ModelCard:
        """Return what the server says of a model; None: the first that it lists.

        Raises:
            ChatError: when there is no server or no model.
        """
        with _readable_errors(self._http.base_url):
            response = self._http.get("/v1/models")
            if name is not None and response.is_error:
                return ModelCard(name=name)  # a server may list nothing, and serve it all the same
            _raise_for_status(response)
            cards = {str(card["id"]): card for card in response.json()["data"]}
            if name is None and not cards:
                raise ChatError("the server lists no model")
            name = name or next(iter(cards))
            defaults = cards.get(name, {}).get("sampling_defaults", {})
            temperature = defaults.get("temperature", _OPENAI_TEMPERATURE)
        return ModelCard(name=name, has_temperature=temperature != _OPENAI_TEMPERATURE)

    def stream(
        self, messages: Sequence[Mapping[str, str]], options: Mapping[str, Any]
    ) -> Generator[Chunk]:
        """Yield the answer to a conversation as it comes; closing the iterator aborts the request.

        Raises:
            ChatError: when the server cannot be reached, refuses, or fails in mid-answer.
        """
        body = {
            **options,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        with (
            _readable_errors(self._http.base_url),
            self._http.stream("POST", "/v1/chat/completions", json=body) as response,
        ):
            if response.is_error:
                response.read()
            _raise_for_status(response)
            for line in response.iter_lines():
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                yield _parse_chunk(json.loads(data))
        raise ChatError("the server closed the connection before the answer was complete")


@contextmanager
def _readable_errors(url: httpx.URL) -> Generator[None]:
    """Turn what httpx and json raise into a ChatError."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        if isinstance(_cause(error), ssl.SSLError):
            hint = "SSL_CERT_FILE names a certificate to trust"
            raise ChatError(f"no secure connection to {url}: {error}; {hint}") from None
        raise ChatError(f"no server at {url}; start one with: adadecode serve") from None
    except UnicodeEncodeError:
        raise ChatError("the message is not valid UTF-8") from None
    except httpx.HTTPError as error:
        raise ChatError(f"connection to {url} lost: {error}") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ChatError(f"{url} does not answer like an OpenAI server") from error


def _cause(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _raise_for_status(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = response.reason_phrase
    raise ChatError(f"{response.status_code}: {message}")


def _parse_chunk(event: Mapping[str, Any]) -> Chunk:
    if event.get("error"):
        raise ChatError(str(event["error"].get("message", "the server failed")))
    choice = event["choices"][0] if event.get("choices") else {}
    usage = event.get("usage")
    return Chunk(
        text=(choice.get("delta") or {}).get("content") or "",
        trace=tuple(_parse_token(token) for token in choice.get("early_exit_trace") or ()),
        num_tokens=usage["completion_tokens"] if usage else None,
        metrics=event.get("metrics") or {},
    )


def _parse_token(token: Mapping[str, Any]) -> TracedToken:
    return TracedToken(
        text=token["token"],
        exit_layer=token["exit_layer"],
        is_early=token["confidence"] is not None,
        rejected=tuple(
            Draft(text=draft["token"], exit_layer=draft["exit_layer"])
            for draft in token.get("rejected", ())
        ),
    )
