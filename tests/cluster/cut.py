"""A wire to the API server that can be cut (for good, or before an answer), or fall silent."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

_RESET = struct.pack("ii", 1, 0)


class CutWire:
    """Carries bytes between clients and a server; what is cut is reset, as by a lost route."""

    def __init__(self, server_url: str) -> None:
        there = urlsplit(server_url)
        self._there = (str(there.hostname), there.port or 443)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"{there.scheme}://127.0.0.1:{self._listening.getsockname()[1]}"
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._dead = self._answers_die = self._silent = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Nothing goes through any more."""
        self._dead = True
        self._reset_all()

    def repair(self) -> None:
        """New connections go through again."""
        self._dead = False

    def cut_at_the_next_answer(self) -> None:
        """What is asked next arrives at the server, and its answer is lost."""
        self._answers_die = True

    def fall_silent(self) -> None:
        """Connections stay, and nothing arrives any more, on either side."""
        self._silent = True

    def close(self) -> None:
        """End it."""
        self._listening.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            if self._dead:
                _reset(client)
                continue
            server = socket.create_connection(self._there)
            with self._lock:
                self._open |= {client, server}
            for source, to, answers in ((client, server, False), (server, client, True)):
                threading.Thread(
                    target=self._carry, args=(source, to, answers), daemon=True
                ).start()

    def _carry(self, source: socket.socket, to: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if answers and self._answers_die:
                    self._answers_die = False
                    self._reset_all()
                    return
                if not self._silent:
                    to.sendall(data)
        _reset(to)

    def _reset_all(self) -> None:
        with self._lock:
            victims, self._open = self._open, set()
        for each in victims:
            _reset(each)


def _reset(end: socket.socket) -> None:
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@contextmanager
def cut_wire(server_url: str) -> Iterator[CutWire]:
    """A wire to that server."""
    wire = CutWire(server_url)
    try:
        yield wire
    finally:
        wire.close()
