"""The connection to Redis: scripts, the server's clock, and what happens while it is away.

Owns the only imports of redis and the translation of its errors. A command has a second and a half;
after one that failed, others are refused for a moment without being tried, so that a server that
hangs costs nobody more than that. Knows nothing of jobs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any, TypeVar, cast

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MasterDownError, OutOfMemoryError, ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.brokers.base import StoreHealth
from service.errors import QueueUnavailable, StartError
from service.telemetry import log_event

T = TypeVar("T")
_COMMAND_S = 1.5
# After a failed command: long enough to spare a server that starts, short enough to be noticed.
_REFUSE_S = 0.5
_RETRY_AFTER_S = 1.0
_MAX_CONNECTIONS = 32
# How long a blocking read waits; its socket must be more patient than that.
BLOCK_MS = 1000
_OLDEST_VERSION = (7, 0)
_FULL_MEMORY = 0.75
# How the server's last writes to its disk went, in its own words.
_WRITES = ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
_SCRIPTS = ("put", "watch", "cancel", "take", "renew", "finish", "hand_back", "sweep", "hold")
# Ending what is open must go on when memory is full: it is what makes room again.
_ALLOWED_WHEN_FULL = {"watch", "cancel", "take", "renew", "finish", "hand_back", "sweep", "hold"}


class RedisConnection:
    """One process's connections to one server."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.client = self._connect(_COMMAND_S)
        # Blocking reads have connections of their own, so that they hold up no command.
        self._reader = self._connect(BLOCK_MS / 1000 + 4 * _COMMAND_S)
        self._scripts = {name: self.client.register_script(_source(name)) for name in _SCRIPTS}
        self._refused_until_s = 0.0
        self._offset_s = 0.0
        self._is_memory_full = False
        self.health: StoreHealth | None = None

    def _connect(self, timeout_s: float) -> redis.asyncio.Redis:
        try:
            pool = redis.asyncio.BlockingConnectionPool.from_url(
                self._url,
                max_connections=_MAX_CONNECTIONS,
                timeout=_COMMAND_S,
                socket_timeout=timeout_s,
                socket_connect_timeout=_COMMAND_S,
                # The default goes on for a minute.
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError as error:
            raise StartError(f"setting redis_url (ONESTEP_REDIS_URL): {error}") from None
        return redis.asyncio.Redis(connection_pool=pool)

    def now_s(self) -> float:
        """The server's clock, as far as it has been compared with ours."""
        return time.time() + self._offset_s

    @property
    def is_memory_full(self) -> bool:
        """Whether the server has little room left for new jobs."""
        return self._is_memory_full

    async def run(self, call: Callable[[redis.asyncio.Redis], Awaitable[T]]) -> T:
        """Send a command.

        Raises:
            QueueUnavailable: the server is away, hangs, or has no room.
        """
        if time.monotonic() < self._refused_until_s:
            raise _unavailable("the queue cannot be reached")
        try:
            async with asyncio.timeout(_COMMAND_S):
                return await call(self.client)
        except OutOfMemoryError:
            raise _unavailable("the queue has no room") from None
        except (ReadOnlyError, MasterDownError) as error:
            log_event("redis_demoted", level=logging.WARNING, error=str(error))
            await self._connect_anew()
            raise _unavailable("the queue moves to another server") from error
        except (RedisConnectionError, RedisTimeoutError, TimeoutError, OSError) as error:
            self._refused_until_s = time.monotonic() + _REFUSE_S
            log_event("redis_away", level=logging.WARNING, error=str(error) or type(error).__name__)
            raise _unavailable("the queue cannot be reached") from error
        except RedisError as error:
            log_event("redis_refused", level=logging.ERROR, exc=error)
            raise _unavailable("the queue refused a command; the log has the cause") from error

    async def script(self, name: str, prefix: str, arguments: Sequence[Any] = ()) -> Any:
        """Run one of the scripts on a model's keys.

        Raises:
            QueueUnavailable: as `run`.
        """
        script = self._scripts[name]
        return await self.run(lambda client: script(keys=[prefix], args=list(arguments)))

    async def read(self, positions: Mapping[str, str]) -> dict[str, list[tuple[str, str]]]:
        """Wait up to `BLOCK_MS` for entries of streams after the given ids.

        Returns:
            stream -> (entry id, its job) pairs.

        Raises:
            QueueUnavailable: as `run`, without refusing others.
        """
        try:
            found: Any = await self._reader.xread(
                cast(dict[str | bytes | memoryview, Any], positions), block=BLOCK_MS, count=500
            )
        except (RedisError, TimeoutError, OSError) as error:
            raise _unavailable("the queue cannot be reached") from error
        streams = found.items() if isinstance(found, dict) else found
        return {
            stream.decode(): [
                (entry.decode(), fields[b"job"].decode()) for entry, fields in _flat(entries)
            ]
            for stream, entries in streams
        }

    async def pop(self, lists: Sequence[str], wait_s: float) -> str | None:
        """Wait for an entry of one of the lists and take it; the list that had one, or None.

        Nobody else gets that entry. When the connection breaks, it may be lost.

        Raises:
            QueueUnavailable: as `run`, without refusing others.
        """
        try:
            async with asyncio.timeout(wait_s + _COMMAND_S):
                found: Any = await self._reader.blpop(list(lists), timeout=wait_s)
        except (RedisError, TimeoutError, OSError) as error:
            raise _unavailable("the queue cannot be reached") from error
        return None if found is None else cast(bytes, found[0]).decode()

    async def push(self, name: str, keep_s: int) -> None:
        """Put an entry into a list, which lasts for so long.

        Raises:
            QueueUnavailable: as `run`.
        """

        async def push(client: Any) -> None:
            async with client.pipeline() as pipeline:
                await pipeline.rpush(name, 1).expire(name, keep_s).execute()

        await self.run(push)

    async def newest(self, key: str, num: int) -> list[tuple[bytes, float]]:
        """The members of a sorted set with the highest scores, highest first.

        Raises:
            QueueUnavailable: as `run`.
        """
        found: Any = await self.run(
            lambda client: client.zrange(key, 0, num - 1, desc=True, withscores=True)
        )
        return [(member, score) for member, score in found]

    async def drop(self, key: str, member: str) -> None:
        """Take a member out of a sorted set.

        Raises:
            QueueUnavailable: as `run`.
        """
        await self.run(lambda client: client.zrem(key, member))

    async def check(self) -> None:
        """Compare clocks, look at the server's version and memory.

        Raises:
            QueueUnavailable: as `run`.
            StartError: the server is older than what the queue needs.
        """
        before_s = time.time()
        seconds, microseconds = await self.run(lambda client: client.time())
        halfway_s = (before_s + time.time()) / 2
        self._offset_s = seconds + microseconds / 1e6 - halfway_s
        told = await self.run(lambda client: client.info())
        version = str(told["redis_version"])
        if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_VERSION:
            raise StartError(f"Redis {version} is too old: 7.0 or newer is needed")
        used, limit = int(told["used_memory"]), int(told.get("maxmemory", 0))
        self._is_memory_full = limit > 0 and used > _FULL_MEMORY * limit
        writes = {told.get(name) for name in _WRITES}
        self.health = StoreHealth(used, limit, "err" not in writes)

    async def _connect_anew(self) -> None:
        """Leave a server that obeys another one now: its name may lead to that one by this time.

        Its connections are as good as ever, so nothing else would end them.
        """
        for client in (self.client, self._reader):
            await client.connection_pool.disconnect(inuse_connections=True)

    async def close(self) -> None:
        """Close every connection."""
        await self.client.aclose()
        await self.client.connection_pool.disconnect()
        await self._reader.aclose()
        await self._reader.connection_pool.disconnect()


def _flat(entries: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Entries of one stream, whichever of the protocol's two shapes they came in."""
    if len(entries) == 1 and isinstance(entries[0], list):
        entries = entries[0]
    return cast(list[tuple[bytes, dict[bytes, bytes]]], entries)


def _source(name: str) -> str:
    folder = files("service.brokers.redis").joinpath("lua")
    shebang = "#!lua flags=allow-oom\n" if name in _ALLOWED_WHEN_FULL else "#!lua\n"
    parts = [folder.joinpath(f"{part}.lua").read_text("utf-8") for part in ("common", name)]
    return shebang + "\n".join(parts)


def _unavailable(detail: str) -> QueueUnavailable:
    return QueueUnavailable(f"{detail}: try again soon", retry_after_s=_RETRY_AFTER_S)
