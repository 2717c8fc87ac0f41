"""Sends streamed requests to an OpenAI-compatible server, and times their chunks."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from httpx import AsyncClient

_DATA = "data:"
_DONE = "[DONE]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request to send."""

    path: str  # /v1/completions or /v1/chat/completions
    body: Mapping[str, Any]


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The answer to a call, with its times in seconds."""

    started_s: float  # by time.perf_counter
    ttft_s: float = 0.0
    latency_s: float = 0.0
    itls_s: list[float] = field(default_factory=list)  # between chunks with text, as in vLLM
    text: str = ""
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0  # of the input, if the server reports it
    error: str | None = None

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first; None with fewer than two."""
        if self.num_output_tokens < 2:
            return None
        return (self.latency_s - self.ttft_s) / (self.num_output_tokens - 1)


async def send(client: "AsyncClient", call: Call) -> Outcome:
    """Send a call and read its stream; whatever goes wrong is the outcome's `error`."""
    import httpx

    outcome = Outcome(started_s=time.perf_counter())
    options = {"stream": True, "stream_options": {"include_usage": True}}
    try:
        async with client.stream("POST", call.path, json={**call.body, **options}) as response:
            if response.status_code != 200:
                await response.aread()
                outcome.error = f"status {response.status_code}: {response.text[:200]}"
                return outcome
            await _read(response, outcome)
    except httpx.HTTPError as error:
        outcome.error = f"{type(error).__name__}: {error}"
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        outcome.error = f"not a stream as OpenAI's: {type(error).__name__}: {error}"
    return outcome


async def _read(response: Any, outcome: Outcome) -> None:
    latest_s, is_complete = outcome.started_s, False
    async for line in response.aiter_lines():
        if not line.startswith(_DATA):
            continue
        data = line.removeprefix(_DATA).strip()
        if data == _DONE:
            is_complete = True
            break
        now_s = time.perf_counter()
        chunk = json.loads(data)
        if chunk.get("error"):
            outcome.error = str(chunk["error"].get("message"))
            return
        usage = chunk.get("usage")
        if usage:
            outcome.num_input_tokens = usage["prompt_tokens"]
            outcome.num_output_tokens = usage["completion_tokens"]
            details = usage.get("prompt_tokens_details") or {}
            outcome.num_cached_tokens = details.get("cached_tokens") or 0
        text = "".join(map(_text, chunk["choices"]))
        if text:
            if outcome.text:
                outcome.itls_s.append(now_s - latest_s)
            else:
                outcome.ttft_s = now_s - outcome.started_s
            outcome.text += text
            latest_s = now_s
    outcome.latency_s = latest_s - outcome.started_s
    if not is_complete:
        outcome.error = "the stream ended before [DONE]"


def _text(choice: Mapping[str, Any]) -> str:
    delta = choice.get("delta") or {}
    return choice.get("text") or delta.get("content") or delta.get("reasoning_content") or ""
