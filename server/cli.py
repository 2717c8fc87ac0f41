"""The `adadecode` command and its subcommands.

Each subcommand is a module with `add_arguments(parser)` and `run(args) -> int`. Only the module of
the chosen one is imported: `serve` loads no torch, `heads train` no web framework.
"""

import argparse
import difflib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from server.version import VERSION

# Exit statuses as shells report them.
_INTERRUPTED = 128 + signal.SIGINT
_PIPE_CLOSED = 128 + signal.SIGPIPE


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand: its name, the module that implements it, and its one-line help."""

    name: str
    module: str
    help: str


COMMANDS = (
    Command("serve", "server.serve", "serve a model over an OpenAI-compatible API"),
    Command("chat", "server.chat", "chat with a running server in the terminal"),
    Command("bench", "benchmarks.cli", "measure what early exits bring on this machine"),
    Command("heads", "training.cli", "train and evaluate exit heads"),
)


class _Parser(argparse.ArgumentParser):
    """Says what to do about an argument that is unknown, where argparse would only repeat it."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but end at what is unknown, at the command it was given to."""
        known, others = super().parse_known_args(args, namespace)
        for other in others:
            if other.startswith("-"):
                flag = other.partition("=")[0]
                nearest = difflib.get_close_matches(flag, self._shown_flags(), n=1, cutoff=0.65)
                hint = f"; did you mean {nearest[0]}?" if nearest else ""
                self.exit(2, f"{self.prog}: {flag}: unknown flag{hint}\n")
            rule = "a flag that takes several values is repeated for each"
            self.exit(2, f"{self.prog}: {other}: one argument too many; {rule}\n")
        return known, others

    def _shown_flags(self) -> list[str]:
        actions = self._option_string_actions.items()
        return [flag for flag, action in actions if action.help != argparse.SUPPRESS]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser(arguments[0] if arguments else "").parse_args(arguments)
        status: int = args.run(args)
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # whoever reads the output has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing to flush at exit
        return _PIPE_CLOSED
    return status


def _parser(chosen: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="adadecode", description="Serve language models faster with verified early exits."
    )
    parser.add_argument("--version", action="version", version=f"adadecode {VERSION}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparser = subparsers.add_parser(
            command.name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
        )
        if command.name == chosen:
            module = import_module(command.module)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
