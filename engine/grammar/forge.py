"""The process that tries structures out: `python -m engine.grammar.forge DIRECTORY VOCAB_SIZE EOS…`

It loads xgrammar and the vocabulary once. For every line it reads, `{"id", "kind", "source",
"timeout_s"}`, a forked child compiles the source under limits of time and memory, and a line
`{"id", "error"}` is written: null where the structure can be followed. A source that takes too
long, takes too much memory or crashes xgrammar costs only its child. Ends when its input does.
"""

import json
import math
import os
import resource
import selectors
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from engine.errors import StructureError
from engine.grammar.compiler import GrammarCompiler
from engine.request import Structure
from engine.vocabulary import load_vocabulary

_EXTRA_MEMORY_BYTES = 1 << 30  # of address space, for a child beyond what the forge has
_MAX_COMPILED_BYTES = 64 << 20  # of one compiled grammar: a worker keeps many
_MAX_TOLD = 400  # characters of an error: it may quote its source
_WARNING = "Warning: "  # xgrammar prints this when it drops part of a structure
_LIMIT_SIGNALS = {signal.SIGALRM, signal.SIGXCPU}


class Forge:
    """Tries structures in forked children, each of which reports its verdict through a pipe."""

    def __init__(self, compiler: GrammarCompiler, vocab_size: int) -> None:
        self._compiler = compiler
        self._vocab_size = vocab_size
        self._selector = selectors.DefaultSelector()
        self._memory_limit = _address_space_bytes() + _EXTRA_MEMORY_BYTES
        self._pending = b""

    def run(self) -> None:
        """Serve standard input until it closes."""
        self._selector.register(0, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fd != 0:
                    self._end(key.fd, *key.data)
                elif not self._read():
                    return

    def _read(self) -> bool:
        chunk = os.read(0, 1 << 16)
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        for line in lines:
            self._begin(json.loads(line))
        return bool(chunk)

    def _begin(self, order: dict[str, Any]) -> None:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            self._try(order, writing)
        os.close(writing)
        self._selector.register(reading, selectors.EVENT_READ, (pid, order))

    def _try(self, order: dict[str, Any], pipe: int) -> NoReturn:
        """Write the verdict into the pipe and exit; runs in the child."""
        timeout_s = float(order["timeout_s"])
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(timeout_s), math.ceil(timeout_s) + 1))
        resource.setrlimit(resource.RLIMIT_AS, (self._memory_limit, self._memory_limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            error = self._verdict(Structure(kind=order["kind"], source=order["source"]))
        except MemoryError:
            error = _TOO_MUCH
        except BaseException as unexpected:
            error = f"it cannot be compiled: {type(unexpected).__name__}"
        os.write(pipe, json.dumps(error and error[:_MAX_TOLD]).encode())
        os._exit(0)

    def _verdict(self, structure: Structure) -> str | None:
        import xgrammar

        with tempfile.TemporaryFile() as told:
            os.dup2(told.fileno(), 2)
            try:
                grammar = self._compiler.compile(structure)
            except StructureError as error:
                return str(error)
            told.seek(0)
            _, warning, dropped = told.read().decode(errors="replace").partition(_WARNING)
        if warning:
            return dropped.splitlines()[0]
        if grammar.memory_size_bytes > _MAX_COMPILED_BYTES:
            return _TOO_MUCH
        words = xgrammar.allocate_token_bitmask(1, self._vocab_size)
        xgrammar.GrammarMatcher(grammar).fill_next_token_bitmask(words)
        return None if words.any() else "it allows no output at all"

    def _end(self, pipe: int, pid: int, order: dict[str, Any]) -> None:
        """Answer for a child that has written its verdict, or died."""
        self._selector.unregister(pipe)
        verdict = os.read(pipe, 16 * _MAX_TOLD)
        os.close(pipe)
        _, status = os.waitpid(pid, 0)
        if verdict:
            error = json.loads(verdict)
        elif os.WIFSIGNALED(status) and os.WTERMSIG(status) in _LIMIT_SIGNALS:
            error = f"it takes longer than {order['timeout_s']:g} s to compile"
        else:
            error = _TOO_MUCH
        answer = {"id": order["id"], "error": error}
        os.write(1, json.dumps(answer).encode() + b"\n")


_TOO_MUCH = "it takes too much memory to compile"


def _address_space_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def main() -> None:
    """Run the forge until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server closes the input when it ends
    directory, vocab_size = Path(sys.argv[1]), int(sys.argv[2])
    compiler = GrammarCompiler(load_vocabulary(directory, vocab_size), list(map(int, sys.argv[3:])))
    Forge(compiler, vocab_size).run()


if __name__ == "__main__":
    main()
