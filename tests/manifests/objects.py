"""Kubernetes objects as plain dictionaries, and the few ways in which checks look at them.

Owns rendering, pods with their owners, selectors. Knows no rule.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from manifests.programs import program, run

Object = dict[str, Any]
Objects = list[Object]
# Yields what is wrong, each as one line that names the object.
Check = Callable[[Objects], Iterator[str]]

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = ("cpu", "gpu", "ha", "ha-external-redis", "distill")
SERVERS = ("Deployment", "StatefulSet")
WORKLOADS = (*SERVERS, "Job")
CHECKS: dict[str, Check] = {}


def check(rule: Check) -> Check:
    """Ask this of every overlay, under the function's name."""
    assert rule.__name__ not in CHECKS, rule.__name__
    CHECKS[rule.__name__] = rule
    return rule


@functools.cache
def _rendered(overlay: str) -> str:
    ran = run(program("kubectl"), "kustomize", ROOT / "k8s" / "overlays" / overlay)
    assert ran.returncode == 0, ran.stderr
    # Deprecated fields are warned about.
    assert not ran.stderr, ran.stderr
    return ran.stdout


@functools.cache
def _objects(overlay: str) -> Objects:
    return list(yaml.safe_load_all(_rendered(overlay)))


def render(overlay: str) -> Objects:
    """The overlay's objects; the caller's own copy."""
    return copy.deepcopy(_objects(overlay))


def name_of(one: Object) -> str:
    """Kind and name, as messages write them."""
    return f"{one['kind']}/{one['metadata']['name']}"


def of_kind(objects: Objects, *kinds: str) -> Objects:
    """The objects of these kinds."""
    return [one for one in objects if one["kind"] in kinds]


@dataclass(frozen=True)
class Pod:
    """A workload's pod, as its template describes it."""

    owner: Object
    spec: Object
    labels: Mapping[str, str]

    @property
    def name(self) -> str:
        return name_of(self.owner)

    @property
    def containers(self) -> Objects:
        """Those that run, and those that run before."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def main(self) -> Object:
        """The container that serves."""
        first: Object = self.spec["containers"][0]
        return first

    @property
    def port_names(self) -> set[str]:
        return {p["name"] for one in self.spec["containers"] for p in one.get("ports", [])}


def pods(objects: Objects, *kinds: str) -> list[Pod]:
    """One pod per workload of these kinds, by default of all."""
    found = []
    for owner in of_kind(objects, *(kinds or WORKLOADS)):
        template = owner["spec"]["template"]
        found.append(Pod(owner, template["spec"], template["metadata"].get("labels", {})))
    return found


def containers(objects: Objects) -> Iterator[tuple[str, Object]]:
    """Every container, with a name for messages."""
    for pod in pods(objects):
        for container in pod.containers:
            yield f"{pod.name}, container {container['name']}", container


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector (matchLabels alone is used here) takes these labels."""
    assert set(selector) <= {"matchLabels"}, "teach this function the other forms first"
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def settings_of(objects: Objects, container: Object) -> dict[str, str]:
    """A container's literal variables: from ConfigMaps, then its own."""
    maps = {one["metadata"]["name"]: one.get("data", {}) for one in of_kind(objects, "ConfigMap")}
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= maps.get(source.get("configMapRef", {}).get("name"), {})
    return found | {
        one["name"]: one["value"] for one in container.get("env", []) if one.get("value")
    }


_UNITS = {"m": 1e-3, "": 1.0, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def quantity(text: str | int) -> float:
    """A Kubernetes quantity as a number."""
    digits = str(text).rstrip("mKMGTi")
    return float(digits) * _UNITS[str(text)[len(digits) :]]
