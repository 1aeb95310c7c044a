"""Real parts for the integration tests: one tiny model, exported once per session."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from redis_server import RedisServer

if TYPE_CHECKING:
    from service_stack import Stack
    from webhook_receiver import Receiver

    from engines.pipeline import Pipeline


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """The order of sums depends on the number of threads: for tests that compare bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def many_sizes_bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that draws two sizes, exported over an older one."""
    from engines_fixtures import tiny_spec, write_tiny_torch_folder

    from engines.export import export_bundle

    source = tmp_path_factory.mktemp("sizes") / "source"
    write_tiny_torch_folder(source, tiny_spec(sizes_px=((64, 64), (128, 64))))
    (source / "grid.webp").write_bytes(b"a picture")
    folder = source.parent / "bundle"
    shutil.copytree(bundle, folder)
    (folder / "stale.txt").write_text("from an older version")
    export_bundle(source, folder)
    return folder


@pytest.fixture(scope="session")
def pipeline(bundle: Path) -> Pipeline:
    """The tiny model, loaded to run beside other work."""
    from engines.pipeline import Pipeline

    return Pipeline.load(bundle, num_threads=1)


@pytest.fixture
async def stack(bundle: Path, pipeline: Pipeline) -> AsyncIterator[Stack]:
    """The service's parts, running in the test's own event loop."""
    from service_stack import running

    async with running(bundle, pipeline) as stack:
        yield stack


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for all; each test finds it empty through `redis_url`."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.close()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The address of an empty server."""
    with redis.Redis(port=redis_server.port) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """Something that listens for webhooks."""
    from webhook_receiver import receiving

    async with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def emoji(repo_root: Path) -> Path:
    """The bundled model, which draws from pictures too."""
    return repo_root / "models" / "emoji"


@pytest.fixture(scope="module")
def emoji_pipeline(emoji: Path) -> Pipeline:
    from engines.pipeline import Pipeline

    return Pipeline.load(emoji, num_threads=1)


@pytest.fixture
async def emoji_stack(emoji: Path, emoji_pipeline: Pipeline) -> AsyncIterator[Stack]:
    """The service's parts around it."""
    from service_stack import running

    async with running(emoji, emoji_pipeline) as stack:
        yield stack
