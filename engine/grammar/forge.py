"""The process that checks structures: `python -m engine.grammar.forge DIRECTORY VOCAB_SIZE EOS…`

It loads xgrammar and the vocabulary once. For every line it reads, `{"id", "kind", "source",
"cpu_s", "wall_s"}`, a forked child compiles the source under limits of time and memory, and a line
`{"id", "error"}` is written: null where the structure can be followed. A source that takes too
long, takes too much memory or crashes xgrammar costs only its child. Where the machine is to blame,
so that the next try may end otherwise, the line is `{"id", "failure"}`. A line `{"drop"}` with an
id ends that child. Ends when its input does.
"""

import errno
import json
import os
import resource
import selectors
import signal
import sys
from dataclasses import dataclass
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
_MAX_PRINTED = 1 << 16  # bytes of what xgrammar prints that are looked at
_BUSY_SIGNALS = {signal.SIGALRM, signal.SIGKILL}  # too slow by the clock, or no memory is left
# Of a child, so that the worker's steps (nice 3) go first. With more it gets too little of a busy
# core: at 10 a sixth, and at 19 a schema that compiles in 30 ms takes seconds.
_NICENESS = 5
_MOST = 0.5  # of its CPU time: what has had so much is too slow, however busy the machine is
_TOO_MUCH = "it takes too much memory to compile"

Verdict = dict[str, str | None]  # an error, null if there is none, or a failure


@dataclass(frozen=True, slots=True)
class _Child:
    """A child that tries a structure, and the pipe it reports through."""

    pid: int
    pipe: int
    order: dict[str, Any]


class Forge:
    """Tries structures in forked children, each of which reports its verdict through a pipe."""

    def __init__(self, compiler: GrammarCompiler, vocab_size: int) -> None:
        self._compiler = compiler
        self._vocab_size = vocab_size
        self._selector = selectors.DefaultSelector()
        self._memory_limit = _address_space_bytes() + _EXTRA_MEMORY_BYTES
        self._pending = b""
        self._children: dict[int, _Child] = {}  # by their orders' ids

    def run(self) -> None:
        """Serve standard input until it closes."""
        self._selector.register(0, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fd != 0:
                    self._end(key.data)
                elif not self._read():
                    for number in self._children:
                        self._drop(number)
                    return

    def _read(self) -> bool:
        chunk = os.read(0, 1 << 16)
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        for line in lines:
            order = json.loads(line)
            if "drop" in order:
                self._drop(order["drop"])
            else:
                self._begin(order)
        return bool(chunk)

    def _begin(self, order: dict[str, Any]) -> None:
        reading, writing = os.pipe()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(reading)
            os.close(writing)
            _answer(order, {"failure": f"no process can be started: {error.strerror}"})
            return
        if pid == 0:
            os.close(reading)
            self._try(order, writing)
        os.close(writing)
        child = self._children[order["id"]] = _Child(pid, reading, order)
        self._selector.register(reading, selectors.EVENT_READ, child)

    def _drop(self, number: int) -> None:
        """End a child whose verdict nobody waits for any more."""
        child = self._children.get(number)
        if child is not None:
            os.kill(child.pid, signal.SIGKILL)

    def _try(self, order: dict[str, Any], pipe: int) -> NoReturn:
        """Write the verdict into the pipe and exit; runs in the child."""
        os.nice(_NICENESS)
        signal.setitimer(signal.ITIMER_PROF, order["cpu_s"])
        signal.setitimer(signal.ITIMER_REAL, order["wall_s"])
        resource.setrlimit(resource.RLIMIT_AS, (self._memory_limit, self._memory_limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        structure = Structure(kind=order["kind"], source=order["source"])
        try:
            error = self._error_of(structure)
            verdict: Verdict = {"error": error and error[:_MAX_TOLD]}
        except MemoryError:
            verdict = {"error": _TOO_MUCH}
        except OSError as failure:
            verdict = {"failure": f"{type(failure).__name__}: {failure.strerror}"}
            if failure.errno == errno.ENOMEM:
                verdict = {"error": _TOO_MUCH}
        except BaseException as unexpected:
            verdict = {"error": f"it cannot be compiled: {type(unexpected).__name__}"}
        os.write(pipe, json.dumps(verdict).encode())
        os._exit(0)

    def _error_of(self, structure: Structure) -> str | None:
        import xgrammar

        printed = os.memfd_create("printed")  # in memory: there may be no directory to write to
        os.dup2(printed, 2)
        try:
            grammar = self._compiler.compile(structure)
        except StructureError as error:
            return str(error)
        text = os.pread(printed, _MAX_PRINTED, 0).decode(errors="replace")
        _, warning, dropped = text.partition(_WARNING)
        if warning:
            return dropped.splitlines()[0]
        if grammar.memory_size_bytes > _MAX_COMPILED_BYTES:
            return _TOO_MUCH
        words = xgrammar.allocate_token_bitmask(1, self._vocab_size)
        xgrammar.GrammarMatcher(grammar).fill_next_token_bitmask(words)
        return None if words.any() else "it allows no output at all"

    def _end(self, child: _Child) -> None:
        """Answer for a child that has written its verdict, or died."""
        self._selector.unregister(child.pipe)
        written = os.read(child.pipe, 16 * _MAX_TOLD)
        os.close(child.pipe)
        _, status, usage = os.wait4(child.pid, 0)
        del self._children[child.order["id"]]
        cpu_s = usage.ru_utime + usage.ru_stime
        verdict = json.loads(written) if written else _verdict_on_death(child, status, cpu_s)
        _answer(child.order, verdict)


def _answer(order: dict[str, Any], verdict: Verdict) -> None:
    os.write(1, json.dumps({"id": order["id"], **verdict}).encode() + b"\n")


def _verdict_on_death(child: _Child, status: int, cpu_s: float) -> Verdict:
    """Return the verdict on a structure whose child died before it wrote one.

    Args:
        child: The child.
        status: Its exit status, as the system reports it.
        cpu_s: The CPU time that it has had.
    """
    by_signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    limit_s = child.order["cpu_s"]
    is_slow = by_signal == signal.SIGALRM and cpu_s >= _MOST * limit_s
    if is_slow or by_signal == signal.SIGPROF:
        return {"error": f"it takes longer than {limit_s:g} s to compile"}
    if by_signal in _BUSY_SIGNALS:
        return {"failure": f"its process was ended by {signal.Signals(by_signal).name}"}
    return {"error": _TOO_MUCH}


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
