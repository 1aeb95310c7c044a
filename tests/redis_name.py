"""One address before two Redis servers, as the name of a replicated one is.

Owns the way of each connection: it stays with the server that the name led to when it was opened.
Connections that are there are left alone, as a name server leaves them alone.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

import redis
from redis_server import RedisServer


class RedisName:
    """A primary and its replica behind one address, until `fail_over`."""

    def __init__(self, folder: Path, primary: RedisServer) -> None:
        (folder / "replica").mkdir()
        self._old = primary
        self.replica = RedisServer(folder / "replica", "--appendonly", "yes")
        self._leads_to = primary.port
        with redis.Redis(port=self.replica.port) as client:
            client.replicaof("127.0.0.1", str(primary.port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listener]
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._leads_to))
                self._open += [near, far]
                for source, goal in ((near, far), (far, near)):
                    threading.Thread(target=_pump, args=(source, goal), daemon=True).start()

    def wait_for_replica(self) -> None:
        """Return once the replica has what the primary had at the call."""
        with redis.Redis(port=self._old.port) as client:
            assert client.wait(1, 10_000) == 1

    def fail_over(self) -> None:
        """Promote the replica; the old primary goes on under it, with all its connections."""
        with redis.Redis(port=self.replica.port) as new, redis.Redis(port=self._old.port) as old:
            new.replicaof("no", "one")
            old.replicaof("127.0.0.1", str(self.replica.port))
        self._leads_to = self.replica.port

    def close(self) -> None:
        """End the replica and every connection."""
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self.replica.close()


def _pump(source: socket.socket, goal: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while content := source.recv(65536):
            goal.sendall(content)
    with contextlib.suppress(OSError):
        goal.shutdown(socket.SHUT_WR)
