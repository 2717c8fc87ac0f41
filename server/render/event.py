"""Encodes server-sent events."""

from pydantic import BaseModel

from server.protocol.common import NamedEvent


def event(chunk: BaseModel) -> bytes:
    """Encode a chunk's event, with its name if it has one; JSON is always one line."""
    name = b"event: %b\n" % chunk.type.encode() if isinstance(chunk, NamedEvent) else b""
    return b"%bdata: %b\n\n" % (name, chunk.model_dump_json().encode())


def mark(text: str) -> bytes:
    """Encode an event that is a word instead of a chunk."""
    return b"data: %b\n\n" % text.encode()
