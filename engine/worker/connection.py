"""The worker's side of the wire: blocking frames over a socket."""

import select
import socket

from engine.wire import HEADER, Message, Wire, frame_length


class Connection:
    """Sends and receives frames over the inherited socket, blocking."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._wire = Wire()

    def send(self, message: Message) -> None:
        """Send one frame."""
        self._socket.sendall(self._wire.encode(message))

    def receive(self) -> Message | None:
        """Return the next frame; None when the server has closed the socket."""
        header = self._read(HEADER.size)
        if header is None:
            return None
        length, kind = frame_length(header)
        body = self._read(length)
        return None if body is None else self._wire.decode(kind, body)

    def is_readable(self, timeout_s: float) -> bool:
        """Whether a frame, or the end of the connection, arrives within the time."""
        return bool(select.select([self._socket], [], [], timeout_s)[0])

    def _read(self, count: int) -> bytes | None:
        chunks = bytearray()
        while len(chunks) < count:
            chunk = self._socket.recv(min(1 << 20, count - len(chunks)))
            if not chunk:
                return None
            chunks += chunk
        return bytes(chunks)
