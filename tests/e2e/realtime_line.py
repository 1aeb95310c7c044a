"""The line between the page and the realtime connection, as a test may listen to it or cut it.

Owns what the page has sent. The answers come from the real service, but for those a test gives.
"""

from __future__ import annotations

import json
from typing import Any

from playwright.sync_api import Page, WebSocketRoute

from tests.e2e.playground_page import REALTIME


class Line:
    """Stands between page and service: sees what the page sends, and may hold or cut."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.socket: WebSocketRoute | None = None
        self.is_cut = False
        self.answers: list[dict[str, Any]] = []

    def attach(self, page: Page) -> None:
        page.route_web_socket(REALTIME, self._open)

    def _open(self, socket: WebSocketRoute) -> None:
        if self.is_cut:
            socket.close(code=1011)
            return
        self.socket = socket
        server = socket.connect_to_server()

        def receive(message: str | bytes) -> None:
            self.sent.append(json.loads(message))
            if self.answers:
                socket.send(json.dumps({"id": self.sent[-1]["id"]} | self.answers.pop(0)))
            else:
                server.send(message)

        socket.on_message(receive)
