"""WS /v1/realtime from pictures, with the bundled model."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator

import numpy as np
import pytest
from PIL import Image
from realtime_client import RealtimeClient, connected
from service_stack import PNG, Stack, listening, pixels


@pytest.fixture
async def client(emoji_stack: Stack) -> AsyncIterator[RealtimeClient]:
    async with listening(emoji_stack) as port, connected(port) as client:
        yield client


def blue_square() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (20, 40, 220)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


async def test_a_picture_from_a_picture_is_the_one_that_generate_draws(
    client: RealtimeClient, emoji_stack: Stack
) -> None:
    start = {"seed": 3, "image": blue_square(), "strength": 0.5}
    await client.ask("heart", id=1, format="png", **start)
    header, picture = await client.receive()
    assert header["id"] == 1
    over_http = pixels((await emoji_stack.draw(PNG, **start)).content)
    from_words = pixels((await emoji_stack.draw(PNG, seed=3)).content)
    assert np.abs(pixels(picture) - over_http).max() <= 1
    assert np.abs(pixels(picture) - from_words).mean() > 2


async def test_what_is_no_picture_is_explained_and_the_connection_stays(
    client: RealtimeClient,
) -> None:
    for image in ("!", base64.b64encode(b"no picture").decode()):
        await client.ask("heart", id=4, image=image)
        error = await client.error("invalid_request")
        assert (error["id"], error["field"]) == (4, "image")
    await client.ask("heart", id=5)
    assert (await client.receive())[0]["id"] == 5
