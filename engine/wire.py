"""Messages between server and worker process: msgpack in length-prefixed frames, never pickle.

frame = length (4 bytes, big endian) | kind (1 byte) | msgpack body
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.config import EngineConfig
from engine.plan import StepPlan, StepResult, WorkerInfo
from engine.request import Structure

HEADER = struct.Struct(">IB")
MAX_FRAME_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the worker is with loading."""

    text: str
    fraction: float


@dataclass(frozen=True, slots=True)
class Failure:
    """The worker could not load, or a step raised."""

    kind: str  # the exception's class
    message: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """A structure is ready, or cannot be compiled."""


Message = (
    EngineConfig | Progress | WorkerInfo | Failure | StepPlan | StepResult | Structure | Prepared
)

_KINDS: dict[type[Any], int] = {
    EngineConfig: 1,
    Progress: 2,
    WorkerInfo: 3,
    Failure: 4,
    StepPlan: 5,
    StepResult: 6,
    Structure: 7,
    Prepared: 8,
}


class Wire:
    """Encodes and decodes messages; each end of a socket has one."""

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_encode_path)
        self._decoders = {
            number: msgspec.msgpack.Decoder(kind, dec_hook=_decode_path)
            for kind, number in _KINDS.items()
        }

    def encode(self, message: Message) -> bytes:
        """Return the message as a whole frame."""
        body = self._encoder.encode(message)
        return HEADER.pack(len(body), _KINDS[type(message)]) + body

    def decode(self, kind: int, body: bytes) -> Message:
        """Return the message in a frame.

        Raises:
            ValueError: It is not one of our messages.
        """
        if kind not in self._decoders:
            raise ValueError(f"unknown frame kind {kind}")
        message: Message = self._decoders[kind].decode(body)
        return message


def frame_length(header: bytes) -> tuple[int, int]:
    """Return (body length, kind) from a frame's header.

    Raises:
        ValueError: The length is above MAX_FRAME_BYTES.
    """
    length, kind = HEADER.unpack(header)
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes")
    return length, kind


def _encode_path(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} does not cross the wire")


def _decode_path(kind: type[Any], value: Any) -> Any:
    if issubclass(kind, Path):
        return Path(value)
    raise NotImplementedError(f"{kind.__name__} does not cross the wire")
