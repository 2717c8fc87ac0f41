"""What the interpreter is told so that it never holds up the event loop for long.

Both are settings of the whole process, so only `adadecode serve` makes them, which is one.
"""

import gc
import sys

# A thread that computes, such as one that encodes a long prompt, hands the interpreter over to the
# event loop after so long. Every call that waits for a socket has to ask for it anew.
_SWITCH_INTERVAL_S = 0.001
# New objects between two collections. Requests leave few cycles behind, and thousands of open
# connections make each collection long.
_YOUNG_OBJECTS = 10_000


def limit_pauses() -> None:
    """Shorter turns for threads, fewer collections of garbage."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])


def spare_what_is_loaded() -> None:
    """Leave what lives now, modules and tokenizer, out of all later collections of garbage."""
    gc.collect()
    gc.freeze()
