"""What is asked of the composed services, and of the Dockerfile.

Owns the merge of Compose files as far as these use it. Knows no engine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from manifests.confinement import CREDENTIALS, FOREIGN_IMAGES
from manifests.images import DOCKERFILE, Stage, chain, stages
from manifests.objects import ROOT
from service.processes.api import FINISH_MARGIN_S
from service.settings import Settings

Stack = dict[str, Any]
StackCheck = Callable[[Stack], Iterator[str]]
FILES = {
    "default": ("compose.yaml",),
    "production": ("compose.yaml", "docker/compose.production.yaml"),
    "gpu": ("compose.yaml", "docker/compose.gpu.yaml"),
}
OWN_IMAGE = re.compile(r"onestep-([a-z-]+):\$\{IMAGE_TAG:-\d+\.\d+\.\d+\}")
ONE_SHOT = ("plans", "keys")
# Lists that a later file replaces; it adds to all others.
REPLACED = ("command", "entrypoint", "test")
STACK_CHECKS: dict[str, StackCheck] = {}


def load(name: str) -> Stack:
    """A stack as Compose would merge it."""
    merged: Stack = {}
    for file in FILES[name]:
        merged = _merge(merged, yaml.safe_load((ROOT / file).read_text()))
    return merged


def with_file(stack: Stack, file: Stack) -> Stack:
    """The stack with one more file at the end of COMPOSE_FILE."""
    merged: Stack = _merge(stack, file)
    return merged


def _merge(under: Any, over: Any, key: str = "") -> Any:
    if isinstance(under, dict) and isinstance(over, dict):
        return under | {k: _merge(under.get(k), v, k) for k, v in over.items()}
    if isinstance(under, list) and isinstance(over, list) and key not in REPLACED:
        return [*under, *over]
    return over


def stack_check(rule: StackCheck) -> StackCheck:
    """Ask this of every stack, under the function's name."""
    STACK_CHECKS[rule.__name__] = rule
    return rule


def _services(stack: Stack) -> Iterator[tuple[str, Stack]]:
    yield from stack["services"].items()


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+)(ms|s|m)", text)
    assert match is not None, text
    return int(match[1]) * {"ms": 0.001, "s": 1, "m": 60}[match[2]]


@stack_check
def services_are_confined(stack: Stack) -> Iterator[str]:
    for name, one in _services(stack):
        if one.get("read_only") is not True:
            yield f"{name}: can write to its image"
        if one.get("cap_drop") != ["ALL"] or one.get("cap_add") or one.get("privileged"):
            yield f"{name}: keeps privileges"
        if "no-new-privileges:true" not in one.get("security_opt", []):
            yield f"{name}: may gain privileges"
        if not all("size=" in line for line in one.get("tmpfs", [""])):
            yield f"{name}: temporary files may fill the memory"


@stack_check
def services_have_limits(stack: Stack) -> Iterator[str]:
    for name, one in _services(stack):
        limits = one.get("deploy", {}).get("resources", {}).get("limits", {})
        if missing := {"cpus", "memory", "pids"} - set(limits):
            yield f"{name}: no limit of {sorted(missing)}"


@stack_check
def stack_images_are_pinned(stack: Stack) -> Iterator[str]:
    found = stages(DOCKERFILE.read_text())
    for name, one in _services(stack):
        own = OWN_IMAGE.fullmatch(one["image"])
        if not own and not FOREIGN_IMAGES.fullmatch(one["image"]):
            yield f"{name}: {one['image']} is not pinned"
        if own and own[1] not in found:
            yield f"{name}: no stage {own[1]}"
        if "build" in one and (not own or one["build"]["target"] != own[1]):
            yield f"{name}: builds another image than it runs"
        if not own and "user" not in one and name != "dcgm-exporter":
            yield f"{name}: may run as root"


@stack_check
def services_tell_their_health(stack: Stack) -> Iterator[str]:
    for name, one in _services(stack):
        health = one.get("healthcheck", {})
        if name not in (*ONE_SHOT, "dcgm-exporter") and "test" not in health:
            yield f"{name}: no health check"
        for other, how in one.get("depends_on", {}).items():
            there = stack["services"].get(other, {})
            is_one_shot = other in ONE_SHOT
            wanted = "service_completed_successfully" if is_one_shot else "service_healthy"
            if not there or how["condition"] != wanted:
                yield f"{name}: does not wait until {other} is there"


@stack_check
def stops_leave_time_for_a_drain(stack: Stack) -> Iterator[str]:
    deadline_s = Settings.model_fields["deadline_s"].default
    for name, one in _services(stack):
        needed_s = deadline_s + FINISH_MARGIN_S + 5 if name in ("api", "worker") else 10
        if name not in ONE_SHOT and _seconds(one.get("stop_grace_period", "0s")) < needed_s:
            yield f"{name}: killed before {needed_s:.0f} s have passed"


@stack_check
def ports_are_published_on_this_machine_alone(stack: Stack) -> Iterator[str]:
    for name, one in _services(stack):
        for port in one.get("ports", []):
            if not port.startswith("127.0.0.1:"):
                yield f"{name}: {port} is open to the network"
        if one.get("ports") and name in ("redis", "worker"):
            yield f"{name}: need not be reached from outside"


@stack_check
def redis_and_workers_have_no_way_out(stack: Stack) -> Iterator[str]:
    for name in ("redis", "worker"):
        for network in stack["services"][name]["networks"]:
            if not stack["networks"][network].get("internal"):
                yield f"{name}: reaches the internet by {network}"


@stack_check
def what_is_named_is_there(stack: Stack) -> Iterator[str]:
    for name, one in _services(stack):
        for network in one.get("networks", []):
            if network not in stack["networks"]:
                yield f"{name}: no network {network}"
        for secret in one.get("secrets", []):
            if secret not in stack.get("secrets", {}):
                yield f"{name}: no secret {secret}"
        for source in (line.split(":")[0] for line in one.get("volumes", [])):
            is_there = (ROOT / source).exists() if "/" in source else source in stack["volumes"]
            if not is_there:
                yield f"{name}: no volume {source}"


@stack_check
def stack_settings_are_known(stack: Stack) -> Iterator[str]:
    for name, one in _services(stack):
        given = {**one.get("environment", {})}
        ours = {k[8:].lower(): v for k, v in given.items() if k.startswith("ONESTEP_")}
        secret = {s[8:].lower() for s in one.get("secrets", []) if s.startswith("ONESTEP_")}
        if unknown := (set(ours) | secret) - set(Settings.model_fields):
            yield f"{name}: no settings {sorted(unknown)}"
        else:
            Settings(**ours)
        if any(CREDENTIALS.search(str(value)) for value in given.values()):
            yield f"{name}: holds a credential"
        limit = one.get("deploy", {}).get("resources", {}).get("limits", {}).get("cpus", "0")
        if name == "worker" and int(ours.get("num_threads", 1000)) > float(limit):
            yield f"{name}: more threads than cores are throttled"


@stack_check
def commands_leave_choices_to_settings(stack: Stack) -> Iterator[str]:
    """An option of the command line would silently win over a setting that an operator adds."""
    for name in ("api", "worker"):
        command = stack["services"][name].get("command", [])
        if any(str(word).startswith("-") for word in command):
            yield f"{name}: {command} decides what a setting should"


@stack_check
def gpus_are_reserved_where_they_are_used(stack: Stack) -> Iterator[str]:
    for name, one in _services(stack):
        needs_one = "gpu" in one["image"] or "dcgm" in one["image"]
        reserved = one.get("deploy", {}).get("resources", {}).get("reservations", {})
        devices = reserved.get("devices", [])
        if needs_one != any(d.get("capabilities") == ["gpu"] for d in devices):
            yield f"{name}: a GPU is reserved or used, but not both"


def image_faults(text: str, targets: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with a Dockerfile's final stages."""
    found = stages(text)
    for target in targets:
        line = chain(found, target)
        steps = [step for stage in line for step in stage.steps]
        base = line[0].base
        if not FOREIGN_IMAGES.fullmatch(base):
            yield f"{target}: {base} is not pinned"
        yield from _stage_faults(target, line, steps)


def _stage_faults(target: str, line: list[Stage], steps: list[tuple[str, str]]) -> Iterator[str]:
    user = next((stage.last("USER") for stage in reversed(line) if stage.last("USER")), "root")
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", user or ""):
        yield f"{target}: runs as {user}"
    words = [word for word, _ in steps]
    if "HEALTHCHECK" not in words:
        yield f"{target}: no health check"
    if any(word == "ADD" for word in words):
        yield f"{target}: ADD fetches what nobody checked"
    after_user = words[words.index("USER") :] if "USER" in words else []
    if "RUN" in after_user or "COPY" in after_user:
        yield f"{target}: its user owns what it runs"
    for word, text in steps:
        if word == "RUN" and re.search(r"apt-get install|pip .*\binstall\b", text):
            yield f"{target}: installs in the final stage"
    if not any("pip uninstall" in text for word, text in steps if word == "RUN"):
        yield f"{target}: keeps pip"


def locked(path: Path) -> dict[str, str]:
    """Names and versions of a lock file, each with at least one digest."""
    pins: dict[str, str] = {}
    for entry in path.read_text().replace("\\\n", " ").splitlines():
        if not entry.strip() or entry.startswith("#"):
            continue
        match = re.match(r"([a-z0-9.-]+)==(\S+)", entry)
        assert match is not None and "--hash=sha256:" in entry, entry[:80]
        pins[match[1]] = match[2]
    return pins
