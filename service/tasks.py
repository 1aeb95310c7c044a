"""How tasks are ended that would go on for ever.

Owns nothing but the patience that it takes. Knows not what they do.
"""

from __future__ import annotations

import asyncio
from typing import Any

_AGAIN_S = 0.5


async def end_tasks(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks until they have ended; what they raise is left in them.

    Once is not enough: until Python 3.12 `asyncio.wait_for`, through which the client of Redis
    writes, loses a cancellation that comes together with its result.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)  # else unread errors are logged
