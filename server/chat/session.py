"""The conversation: what was said, the commands, and one answer after the other."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from server.chat.client import ChatClient, ChatError
from server.chat.display import AnswerDisplay, Style, format_stats

HELP = """\
/reset          forget the conversation
/system [TEXT]  set the system prompt and start anew; without TEXT: none
/exits          switch colouring by exit layer on or off
/help           this
/quit           leave (so does Ctrl-D)
Ctrl-C stops an answer."""


@dataclass(slots=True, kw_only=True)
class ChatOptions:
    """Options from the command line; `/exits` and `/system` change two of them later."""

    model: str
    system: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    early_exit: bool = True
    show_exits: bool = False
    stats: bool = False

    def request_options(self) -> dict[str, Any]:
        """Return the request body without the messages; options not set are left to the server."""
        options: dict[str, Any] = {"model": self.model}
        if self.temperature is not None:
            options["temperature"] = self.temperature
        if self.max_tokens is not None:
            options["max_tokens"] = self.max_tokens
        early_exit = {} if self.early_exit else {"enabled": False}
        if self.show_exits:
            early_exit["return_trace"] = True
        if early_exit:
            options["early_exit"] = early_exit
        return options


class ChatSession:
    """One conversation with one server."""

    def __init__(
        self, client: ChatClient, options: ChatOptions, output: TextIO, style: Style
    ) -> None:
        self._client = client
        self._options = options
        self._output = output
        self._style = style
        self._messages: list[dict[str, str]] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "/reset": self._reset,
            "/system": self._set_system,
            "/exits": self._switch_exits,
            "/help": lambda _: self._note(HELP),
        }
        self._reset_messages()

    def handle(self, line: str) -> bool:
        """Answer a line or carry out a command.

        Returns:
            False when the user wants to leave.

        Raises:
            ChatError: when the answer fails; the conversation stays as it was before.
        """
        line = line.strip()
        if not line:
            return True
        if not line.startswith("/"):
            self._answer(line)
            return True
        name, _, argument = line.partition(" ")
        if name == "/quit":
            return False
        command = self._commands.get(name)
        if command is None:
            self._note(f"unknown command {name}\n{HELP}")
        else:
            command(argument.strip())
        return True

    def _answer(self, text: str) -> None:
        """Stream one answer; after Ctrl-C, the part that came stays in the conversation."""
        question = {"role": "user", "content": text}
        display = AnswerDisplay(self._output, self._style, show_exits=self._options.show_exits)
        started = time.perf_counter()
        first_at: float | None = None
        answer, num_tokens = "", 0
        metrics: Mapping[str, Any] = {}
        chunks = self._client.stream([*self._messages, question], self._options.request_options())
        try:
            for chunk in chunks:
                if chunk.text and first_at is None:
                    first_at = time.perf_counter()
                answer += chunk.text
                num_tokens = chunk.num_tokens or num_tokens
                metrics = chunk.metrics or metrics
                display.show(chunk)
        except KeyboardInterrupt:
            display.end()
            self._note("(stopped)")
        else:
            display.end()
            if self._options.stats:
                ended = time.perf_counter()
                ttft_s = (first_at or ended) - started
                self._note(format_stats(num_tokens, ttft_s, ended - started, metrics))
        finally:
            chunks.close()
        self._messages += [question, {"role": "assistant", "content": answer}]

    def _reset(self, _: str) -> None:
        self._reset_messages()
        self._note("(new conversation)")

    def _set_system(self, text: str) -> None:
        self._options.system = text or None
        self._reset("")

    def _switch_exits(self, _: str) -> None:
        self._options.show_exits = not self._options.show_exits
        self._note(f"(exits {'shown' if self._options.show_exits else 'hidden'})")

    def _reset_messages(self) -> None:
        system = self._options.system
        self._messages = [{"role": "system", "content": system}] if system else []

    def _note(self, text: str) -> None:
        self._output.write(self._style.dim(text) + "\n")
        self._output.flush()


def converse(session: ChatSession, read: Callable[[], str], output: TextIO, style: Style) -> None:
    """Run the interactive loop: errors are shown and the conversation goes on.

    Args:
        read: Returns the next line; raises EOFError at the end of input.
    """
    while True:
        try:
            if not session.handle(read()):
                return
        except EOFError:
            output.write("\n")
            return
        except KeyboardInterrupt:
            output.write("\n" + style.dim("(/quit or Ctrl-D to leave)") + "\n")
        except ChatError as error:
            output.write(f"\nerror: {error}\n")
