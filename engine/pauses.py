"""What the interpreter is told so that it never holds up the event loop, or a step, for long.

All are settings of the whole process, so only the entry points of processes make them.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# A thread that computes, such as one that encodes a long prompt, hands the interpreter over to the
# event loop after so long. Every call that waits for a socket has to ask for it anew.
_SWITCH_INTERVAL_S = 0.001
# New objects between two collections. Requests leave few cycles behind, and thousands of open
# connections make each collection long; with so many, dozens of streams end before there is one.
_YOUNG_OBJECTS = 50_000


def limit_pauses() -> None:
    """Shorter turns for threads, fewer collections of garbage."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])


def spare_what_is_loaded() -> None:
    """Leave what lives now, modules, tokenizer and model, out of all later collections of garbage:
    beside torch one of them all takes longer than many steps.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def sparing_what_is_loaded() -> Iterator[None]:
    """For as long as this lasts, what lived before is left out: what is timed is the work, as where
    a process serves nothing else.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
