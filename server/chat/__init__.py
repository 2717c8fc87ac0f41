"""`adadecode chat`: a conversation with a running server in the terminal.

An ordinary client of the HTTP API: knows nothing of the server or the engine but the number that
stands for the layer of a looked-up draft.
"""

from server.chat.command import add_arguments, run

__all__ = ["add_arguments", "run"]
