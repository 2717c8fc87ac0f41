"""Interpreter settings with which it never holds up the event loop, or a step, for long.

They apply to the whole process, so only the entry points of processes make them; measurements use
`sparing_what_is_loaded`, which is undone afterwards.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# The time after which a thread that computes, such as one that renders a long chat, hands the
# interpreter over to the event loop, which has to ask for it again after every call on a socket.
_SWITCH_INTERVAL_S = 0.001
# New objects between two garbage collections. Requests leave few cycles behind, and thousands of
# open connections make each collection long; with this number dozens of streams end between two.
_YOUNG_OBJECTS = 50_000


def limit_pauses() -> None:
    """Give threads shorter turns and collect garbage less often."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])


def spare_what_is_loaded() -> None:
    """Leave all live objects (modules, tokenizer, model) out of later garbage collections.

    With torch loaded, one collection of them all takes longer than many steps.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def sparing_what_is_loaded() -> Iterator[None]:
    """Leave objects that were live before the block out of garbage collections within it.

    What is timed there is the work alone, as in a process that does nothing else.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
