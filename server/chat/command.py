"""The command line of `adadecode chat`: its flags, and the choice of interactive or piped input."""

import argparse
import contextlib
import math
import os
import sys

from server.chat.client import ChatClient, ChatError
from server.chat.display import Style
from server.chat.session import ChatOptions, ChatSession, converse

_DEFAULT_TEMPERATURE = 0.2  # small models ramble at the API's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `adadecode chat`."""
    parser.add_argument(
        "--base-url",
        "--url",
        default="http://127.0.0.1:8000",
        help="Address of the server, with or without /v1 (default: %(default)s).",
    )
    parser.add_argument("--api-key", help="API key (default: the first in $ADADECODE_API_KEY).")
    parser.add_argument("--model", help="Model name (default: the first the server lists).")
    parser.add_argument("--system", metavar="TEXT", help="System prompt.")
    parser.add_argument(
        "--temperature",
        type=_finite,
        help="0 is greedy, 1 is the API's default (default: the model's own if it has another, "
        f"else {_DEFAULT_TEMPERATURE}, as on the page).",
    )
    parser.add_argument("--max-tokens", type=int, help="Longest answer (default: the server's).")
    parser.add_argument("--no-early-exit", action="store_true", help="Ask for plain decoding.")
    parser.add_argument(
        "--show-exits",
        action="store_true",
        help="Colour every token by the layer it left at; rejected drafts are struck through.",
    )
    parser.add_argument(
        "--stats", action="store_true", help="Print a line of figures after each answer."
    )


def run(args: argparse.Namespace) -> int:
    """Chat until the input ends and return the exit status."""
    try:
        _chat(args)
    except ChatError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _finite(text: str) -> float:
    """Parse a number that JSON can hold."""
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    raise argparse.ArgumentTypeError(f"{text!r} should be a number")


def _chat(args: argparse.Namespace) -> None:
    client = ChatClient(args.base_url, args.api_key or _key_from_environment())
    try:
        card = client.model_card(args.model)
        temperature = args.temperature
        if temperature is None and not card.has_temperature:
            temperature = _DEFAULT_TEMPERATURE
        options = ChatOptions(
            model=card.name,
            system=args.system,
            temperature=temperature,
            max_tokens=args.max_tokens,
            early_exit=not args.no_early_exit,
            show_exits=args.show_exits,
            stats=args.stats,
        )
        style = Style(_wants_colour())
        session = ChatSession(client, options, sys.stdout, style)
        if sys.stdin.isatty():
            _greet(options, style)
            converse(session, lambda: input("> "), sys.stdout, style)
        else:
            _answer_lines(session)
    finally:
        client.close()


def _answer_lines(session: ChatSession) -> None:
    """Answer every line of piped input; the first error ends the chat."""
    for line in sys.stdin:
        if not session.handle(line):
            return


def _greet(options: ChatOptions, style: Style) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() line editing and history
    print(style.dim(f"{options.model} · /help for commands, Ctrl-C stops an answer, Ctrl-D leaves"))


def _key_from_environment() -> str | None:
    # The server takes several keys from this variable, separated by commas: any of them will do.
    return os.environ.get("ADADECODE_API_KEY", "").split(",")[0].strip() or None


def _wants_colour() -> bool:
    """See no-color.org: any non-empty value of NO_COLOR turns colours off."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return sys.stdout.isatty()
