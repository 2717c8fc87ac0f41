"""How an answer looks in the terminal: text as it comes, colours by exit layer, a line of figures.

Knows no HTTP. The model's text is not trusted: its control characters do not reach the terminal.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from engine.request import LOOKED_UP
from server.chat.client import Chunk, Draft, TracedToken

# 256-colour codes that can be told apart on dark and light backgrounds. Exit layers take them in
# the order in which they first appear.
_COLOURS = (42, 214, 39, 207, 191, 203, 75, 178)
_RESET, _DIM = "\x1b[0m", "\x1b[2m"
_DIM_STRUCK = "\x1b[2;9m"
_CONTROL_CHARACTERS = {
    code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
}


class Style:
    """Terminal styles. With colours off, text stays as it is and rejected drafts are left out."""

    def __init__(self, is_coloured: bool) -> None:
        self.is_coloured = is_coloured
        self._colours: dict[int, int] = {}  # exit layer -> colour; kept for the whole session

    def dim(self, text: str) -> str:
        """Dim text that is not part of the answer."""
        return f"{_DIM}{text}{_RESET}" if self.is_coloured else text

    def rejected(self, text: str) -> str:
        """Strike a rejected draft through; without colours it would look like the answer."""
        return f"{_DIM_STRUCK}{text}{_RESET}" if self.is_coloured else ""

    def at_layer(self, text: str, exit_layer: int) -> str:
        """Colour text by its exit layer."""
        if not self.is_coloured:
            return text
        if exit_layer not in self._colours:
            self._colours[exit_layer] = _COLOURS[len(self._colours) % len(_COLOURS)]
        return f"\x1b[38;5;{self._colours[exit_layer]}m{text}{_RESET}"


@dataclass(slots=True)
class ExitCounts:
    """How many tokens of one answer came from each exit or full depth, and the drafts rejected."""

    early: Counter[int] = field(default_factory=Counter)  # exit layer -> tokens
    num_full: int = 0
    num_rejected: int = 0

    def add(self, token: TracedToken) -> None:
        """Count one token and the drafts rolled back before it."""
        if token.is_early:
            self.early[token.exit_layer] += 1
        else:
            self.num_full += 1
        self.num_rejected += len(token.rejected)


class AnswerDisplay:
    """Writes one answer. Call `show` for every chunk, then `end`."""

    def __init__(self, output: TextIO, style: Style, *, show_exits: bool) -> None:
        self._output = output
        self._style = style
        self._show_exits = show_exits
        self._waiting: deque[TracedToken] = deque()  # their text is still held back by the server
        self._counts = ExitCounts()

    def show(self, chunk: Chunk) -> None:
        """Write a chunk's text at once."""
        if not self._show_exits:
            self._write(_printable(chunk.text))
            return
        for token in chunk.trace:
            self._counts.add(token)
            self._waiting.append(token)
        for text, source in _align(chunk.text, self._waiting):
            self._write(self._traced(text, source))

    def end(self) -> None:
        """Finish the line; if exits are shown, add a legend with the counts."""
        self._write("\n")
        if self._show_exits:
            self._write(self._legend() + "\n")

    def _write(self, text: str) -> None:
        self._output.write(text)
        self._output.flush()

    def _traced(self, text: str, token: TracedToken | None) -> str:
        text = _printable(text)
        if token is None:
            return text
        struck = self._style.rejected(_one_line(token.rejected)) if token.rejected else ""
        return struck + (self._style.at_layer(text, token.exit_layer) if token.is_early else text)

    def _legend(self) -> str:
        entries = [
            self._style.at_layer(f"{_name(layer)}: {count}", layer)
            for layer, count in sorted(self._counts.early.items())
        ]
        entries.append(f"full depth: {self._counts.num_full}")
        entries.append(
            f"{self._style.rejected('rejected') or 'rejected'}: {self._counts.num_rejected}"
        )
        return self._style.dim("tokens by exit  ") + "  ".join(entries)


def format_stats(
    num_tokens: int, ttft_s: float, duration_s: float, metrics: Mapping[str, Any]
) -> str:
    """Format a line of figures: tokens, speed after the first token, time to the first one, drafts.

    Args:
        metrics: The response's `metrics` object; its parts may be missing.
    """
    decode_s = duration_s - ttft_s
    speed = (
        f"{(num_tokens - 1) / decode_s:.1f} tok/s" if num_tokens > 1 and decode_s > 0 else "? tok/s"
    )
    parts = [f"{num_tokens} tokens", speed, f"first after {ttft_s * 1000:.0f} ms"]
    drafts = metrics.get("speculative_decoding")
    if drafts and drafts["num_draft_tokens"]:
        parts.append(
            f"{drafts['draft_acceptance_rate']:.0%} of {drafts['num_draft_tokens']} drafts accepted"
        )
    by_layer = metrics.get("early_exit", {}).get("accepted_by_layer", {})
    if by_layer:
        exits = ", ".join(f"{layer}: {by_layer[layer]}" for layer in sorted(by_layer, key=int))
        parts.append(f"exits by layer {exits}")
    return " · ".join(parts)


def _align(text: str, waiting: deque[TracedToken]) -> list[tuple[str, TracedToken | None]]:
    """Split text into the tokens it came from, which are removed from `waiting`.

    Text may lag behind its tokens (held back for a stop string) and tokens need not be whole
    characters: where the two do not match, the rest of the text counts as the first token waiting.
    """
    pieces: list[tuple[str, TracedToken | None]] = []
    while text and waiting and text.startswith(waiting[0].text):
        token = waiting.popleft()
        pieces.append((token.text, token))
        text = text[len(token.text) :]
    if text:
        pieces.append((text, waiting[0] if waiting else None))
        waiting.clear()
    return pieces


def _printable(text: str) -> str:
    return text.translate(_CONTROL_CHARACTERS)


def _name(layer: int) -> str:
    return "looked up" if layer == LOOKED_UP else f"layer {layer}"


def _one_line(drafts: Sequence[Draft]) -> str:
    return _printable("".join(draft.text for draft in drafts)).replace("\n", "⏎")
