"""Who may try next when the queue is full: those who wait for room, first come, first served.

Without it whoever has just got a picture would take the place that it left, and who was refused
once could try for seconds. Owns the order. Knows neither queue nor connection.
"""

from __future__ import annotations

import asyncio


class Turns:
    """The line of one process; a place in it is kept while its holder tries in vain."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._num_places = 0

    @property
    def is_anyone_waiting(self) -> bool:
        """Whether somebody would be overtaken by who tries now."""
        return bool(self._waiting)

    def new_place(self) -> int:
        """The end of the line."""
        self._num_places += 1
        return self._num_places

    async def wait(self, place: int, timeout_s: float) -> bool:
        """Whether it has become this place's turn, within a time.

        It is when there is room, and at the end of that time for the first in line: room may have
        been made elsewhere.
        """
        turn = asyncio.get_running_loop().create_future()
        self._waiting[place] = turn
        try:
            await asyncio.wait((turn,), timeout=timeout_s)
            return turn.done() or place == min(self._waiting)
        except asyncio.CancelledError:
            if turn.done():  # the room is somebody else's now
                self.note_room()
            raise
        finally:
            del self._waiting[place]

    def note_room(self, num_places: int = 1) -> None:
        """There may be room for so many more: it is the turn of the first in line."""
        still = [place for place, turn in self._waiting.items() if not turn.done()]
        for place in sorted(still)[:num_places]:
            self._waiting[place].set_result(None)
