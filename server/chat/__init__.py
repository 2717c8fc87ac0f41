"""`adadecode chat`: a conversation with a running server in the terminal.

An ordinary client of the HTTP API: imports neither the engine nor the rest of the server.
"""

from server.chat.command import add_arguments, run

__all__ = ["add_arguments", "run"]
