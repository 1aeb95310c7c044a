"""The composed services, their configuration and their secrets."""

from __future__ import annotations

import copy
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests.composed import FILES, STACK_CHECKS, Stack, load
from manifests.objects import ROOT
from manifests.programs import program, run
from redis_server import RedisServer


@pytest.mark.parametrize("file", sorted({file for files in FILES.values() for file in files}))
def test_a_compose_file_fits_the_specification(file: str, tmp_path: Path) -> None:
    check = (program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec")
    assert run(*check, ROOT / file).returncode == 0
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(
        (ROOT / file).read_text().replace("\nservices:", "\nservices:\n  a: {imag: b}", 1)
    )
    assert "imag" in run(*check, wrong).stdout


@pytest.mark.parametrize("rule", STACK_CHECKS)
@pytest.mark.parametrize("name", FILES)
def test_a_stack_passes(name: str, rule: str) -> None:
    assert list(STACK_CHECKS[rule](load(name))) == []


@pytest.mark.parametrize(
    ("rule", "name", "path", "value"),
    [
        ("services_are_confined", "default", "services api read_only", False),
        ("services_are_confined", "default", "services worker cap_add", ["NET_ADMIN"]),
        ("services_are_confined", "gpu", "services plans security_opt", []),
        ("services_are_confined", "default", "services redis tmpfs", ["/tmp"]),
        ("services_have_limits", "production", "services keys deploy", {}),
        ("stack_images_are_pinned", "default", "services redis image", "redis:7"),
        ("stack_images_are_pinned", "default", "services api image", "onestep-api:latest"),
        ("stack_images_are_pinned", "default", "services api build target", "worker-cpu"),
        ("stack_images_are_pinned", "default", "services grafana user", None),
        ("services_tell_their_health", "default", "services redis healthcheck", {}),
        ("services_tell_their_health", "gpu", "services worker depends_on plans condition", "x"),
        ("stops_leave_time_for_a_drain", "default", "services api stop_grace_period", "10s"),
        ("ports_are_published_on_this_machine_alone", "default", "services api ports", ["80:8000"]),
        (
            "ports_are_published_on_this_machine_alone",
            "default",
            "services redis ports",
            ["127.0.0.1:6379:6379"],
        ),
        ("redis_and_workers_have_no_way_out", "default", "networks queue internal", False),
        ("what_is_named_is_there", "production", "secrets redis_auth.conf", None),
        ("what_is_named_is_there", "default", "volumes redis", None),
        ("what_is_named_is_there", "default", "services api networks", ["front"]),
        ("stack_settings_are_known", "default", "services api environment ONESTEP_QUEUE", "1"),
        (
            "stack_settings_are_known",
            "default",
            "services api environment ONESTEP_REDIS_URL",
            "redis://:word@redis:6379/0",
        ),
        ("stack_settings_are_known", "default", "services worker environment", {}),
        (
            "commands_leave_choices_to_settings",
            "default",
            "services api command",
            ["onestep", "api", "--model", "models/emoji"],
        ),
        ("gpus_are_reserved_where_they_are_used", "gpu", "services worker deploy", {}),
    ],
)
def test_a_mistake_in_a_stack_is_found(rule: str, name: str, path: str, value: object) -> None:
    stack: Stack = copy.deepcopy(load(name))
    *way, last = path.split()
    place: Any = stack
    for key in way:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    assert list(STACK_CHECKS[rule](stack))


def test_prometheus_takes_its_configuration(repo_root: Path, tmp_path: Path) -> None:
    promtool = program("promtool")
    ran = run(promtool, "check", "config", repo_root / "docker/prometheus/prometheus.yml")
    assert ran.returncode == 0, ran.stderr
    jobs = yaml.safe_load((repo_root / "docker/prometheus/prometheus.yml").read_text())
    names = {
        n
        for job in jobs["scrape_configs"]
        for n in job.get("dns_sd_configs", [{}])[0].get("names", [])
    }
    assert names == {"api", "worker", "dcgm-exporter"} and names <= set(load("gpu")["services"])
    (receiver,) = jobs["alerting"]["alertmanagers"]
    assert receiver["dns_sd_configs"][0]["names"] == ["alertmanager"]
    (tmp_path / "prometheus.yml").write_text("scrape_config: []\n")
    assert run(promtool, "check", "config", tmp_path / "prometheus.yml").returncode != 0


@pytest.fixture
def redis_files(tmp_path: Path) -> tuple[Path, Path]:
    """Redis' configuration, but for its folder, and the password's file."""
    text = (ROOT / "docker/redis/redis.conf").read_text()
    assert "\ndir /data\n" in text
    conf = tmp_path / "redis.conf"
    conf.write_text(text.replace("dir /data", f"dir {tmp_path}"))
    return conf, _create_secrets(tmp_path) / "redis_auth.conf"


def test_redis_keeps_what_it_is_given(tmp_path: Path, redis_files: tuple[Path, Path]) -> None:
    redis = RedisServer(tmp_path, "--include", str(redis_files[0]))
    try:
        asked = ("CONFIG", "GET", "maxmemory-policy", "appendonly", "appendfsync", "maxmemory")
        said = run("redis-cli", "-p", redis.port, *asked).stdout.split()
    finally:
        redis.close()
    assert dict(zip(said[::2], said[1::2], strict=True)) == {
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory": str(2**30),
    }


def test_redis_asks_for_the_password_and_is_healthy(
    tmp_path: Path, redis_files: tuple[Path, Path]
) -> None:
    """As compose.production.yaml starts it, asked as its health check asks."""
    conf, auth = redis_files
    command = load("production")["services"]["redis"]["command"]
    assert command[1:] == ["/etc/redis/redis.conf", "--include", "/run/secrets/redis_auth.conf"]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    asks = load("production")["services"]["redis"]["healthcheck"]["test"][1]
    asks = asks.replace("redis-cli", f"redis-cli -p {port}")
    line = [program("redis-server"), str(conf), "--port", port, "--include", str(auth)]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(line, stdout=log, stderr=log)
    try:
        end_s = time.monotonic() + 10
        while run("sh", "-c", asks).returncode:
            assert server.poll() is None and time.monotonic() < end_s, (
                tmp_path / "log"
            ).read_text()
            time.sleep(0.02)
        said = [run("redis-cli", "-p", port, "SET", "a", "1").stdout]
        password = (auth.parent / "ONESTEP_REDIS_URL").read_text().split(":")[2].split("@")[0]
        variables = {**os.environ, "REDISCLI_AUTH": password}
        said += [run("redis-cli", "-p", port, "SET", "a", "1", env=variables).stdout]
    finally:
        server.kill()
        server.wait()
    assert said[0].startswith("NOAUTH") and said[1] == "OK\n"
    assert run("sh", "-c", asks).returncode != 0


def _create_secrets(folder: Path) -> Path:
    script = folder / "create-secrets"
    shutil.copy2(ROOT / "docker" / "create-secrets", script)
    assert run(script).returncode == 0
    return folder / "secrets"


def test_secrets_are_made_once_and_closed_to_others(tmp_path: Path) -> None:
    made = _create_secrets(tmp_path)
    assert made.stat().st_mode & 0o777 == 0o700
    files = {path.name: path.read_text() for path in made.iterdir()}
    asked = {one["file"].rsplit("/", 1)[1] for one in load("production")["secrets"].values()}
    assert set(files) == asked
    # Containers' processes have other owners.
    assert {path.stat().st_mode & 0o777 for path in made.iterdir()} == {0o444}
    assert files == {path.name: path.read_text() for path in _create_secrets(tmp_path).iterdir()}
    assert len({*files.values()}) == len(files)
