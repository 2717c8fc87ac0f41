"""MODEL as the user names it -> a local directory in the Hugging Face layout, safe to load.

Knows files and formats, neither torch nor HTTP. The server calls `resolve_model` once at start;
everything after that reads only the directory.
"""

from engine.checkpoint.cache import Progress
from engine.checkpoint.heads import find_heads
from engine.checkpoint.resolve import resolve_model

__all__ = ["Progress", "find_heads", "resolve_model"]
