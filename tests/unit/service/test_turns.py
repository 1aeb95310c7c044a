"""Who may try next when the queue is full."""

from __future__ import annotations

import asyncio

from service.routes.turns import Turns

LONG_S = 20.0


async def _in_line(turns: Turns, number: int) -> list[asyncio.Task[bool]]:
    tasks = [
        asyncio.create_task(turns.wait(turns.new_place(), timeout_s=LONG_S)) for _ in range(number)
    ]
    await asyncio.sleep(0)
    return tasks


async def _settled(tasks: list[asyncio.Task[bool]]) -> list[bool]:
    for _ in range(5):
        await asyncio.sleep(0)
    return [task.done() for task in tasks]


async def _leave(tasks: list[asyncio.Task[bool]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_room_goes_to_who_has_waited_longest() -> None:
    turns = Turns()
    tasks = await _in_line(turns, 4)
    turns.note_room()
    assert await _settled(tasks) == [True, False, False, False]
    turns.note_room(2)
    assert await _settled(tasks) == [True, True, True, False]
    assert turns.is_anyone_waiting
    await _leave(tasks)
    assert not turns.is_anyone_waiting


async def test_who_tried_in_vain_is_before_those_who_came_later() -> None:
    turns = Turns()
    early = turns.new_place()
    tasks = await _in_line(turns, 1)
    tasks += [asyncio.create_task(turns.wait(early, timeout_s=LONG_S))]
    await asyncio.sleep(0)
    turns.note_room()
    assert await _settled(tasks) == [False, True]
    assert await tasks[1]
    await _leave(tasks)


async def test_two_rooms_at_once_are_for_two() -> None:
    turns = Turns()
    tasks = await _in_line(turns, 3)
    turns.note_room()
    turns.note_room()
    assert await _settled(tasks) == [True, True, False]
    await _leave(tasks)


async def test_after_a_while_the_first_in_line_tries_and_nobody_else() -> None:
    turns = Turns()
    first, second = turns.new_place(), turns.new_place()
    tasks = [asyncio.create_task(turns.wait(first, timeout_s=LONG_S))]
    assert not await turns.wait(second, timeout_s=0.01)
    await _leave(tasks)
    tasks = [asyncio.create_task(turns.wait(second, timeout_s=LONG_S))]
    assert await turns.wait(first, timeout_s=0.01)
    await _leave(tasks)


async def test_the_room_of_who_has_gone_is_the_next_ones() -> None:
    turns = Turns()
    tasks = await _in_line(turns, 2)
    turns.note_room()
    tasks[0].cancel()
    assert await _settled(tasks) == [True, True]
    assert tasks[0].cancelled() and await tasks[1]
