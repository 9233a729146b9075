"""A TCP connection to a server that can be cut and mended."""

import contextlib
import socket
import struct
import threading


class Cable:
    """Listens on a port of its own and passes everything on, while it is whole."""

    def __init__(self, target: int) -> None:
        self.target = target  # port
        self.pairs: list[tuple[socket.socket, socket.socket]] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.whole = True
        threading.Thread(target=self._accept, daemon=True).start()

    def through(self, url: str) -> str:
        "Return an address of the target as one that leads through this cable."
        return url.replace(f":{self.target}/", f":{self.port}/")

    def cut(self) -> None:
        "Reset every connection and take no more."
        self.whole = False
        for end in (end for pair in self.pairs for end in pair):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)
        self.pairs.clear()

    def mend(self) -> None:
        "Take connections again."
        self.whole = True

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                if not self.whole:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self.target))
                self.pairs.append((near, far))
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=(one, other), daemon=True).start()

    @staticmethod
    def _copy(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65_536):
                other.sendall(data)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_RDWR)
