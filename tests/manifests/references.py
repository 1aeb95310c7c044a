"""Whether what an object names is there."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator

import yaml

from manifests.objects import (
    ROOT,
    SERVERS,
    Objects,
    check,
    containers,
    matches,
    name_of,
    of_kind,
    pods,
    settings_of,
)
from service.errors import StartError
from service.settings import Settings

CLUSTER_WIDE = ("Namespace", "PriorityClass")


def _names(objects: Objects, kind: str) -> set[str]:
    return {one["metadata"]["name"] for one in of_kind(objects, kind)}


def _secrets_to_create() -> dict[str, set[str]]:
    """Name and keys of what an operator creates by hand."""
    example = (ROOT / "k8s" / "secrets.example.yaml").read_text()
    return {one["metadata"]["name"]: set(one["stringData"]) for one in yaml.safe_load_all(example)}


@check
def names_are_unique(objects: Objects) -> Iterator[str]:
    for name, times in Counter(name_of(one) for one in objects).items():
        if times > 1:
            yield f"{name} is there {times} times"


@check
def everything_lies_in_one_confined_namespace(objects: Objects) -> Iterator[str]:
    spaces = of_kind(objects, "Namespace")
    if len(spaces) != 1:
        yield f"{len(spaces)} namespaces"
        return
    labels = spaces[0]["metadata"].get("labels", {})
    if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
        yield f"{name_of(spaces[0])}: takes pods of any privilege"
    for one in objects:
        if one["kind"] not in CLUSTER_WIDE:
            if one["metadata"].get("namespace") != spaces[0]["metadata"]["name"]:
                yield f"{name_of(one)}: lies elsewhere"


@check
def selectors_take_their_own_pods(objects: Objects) -> Iterator[str]:
    for pod in pods(objects, *SERVERS):
        if not matches(pod.owner["spec"]["selector"], pod.labels):
            yield f"{pod.name}: does not select its own pods"
        others = [one for one in pods(objects) if one.owner is not pod.owner]
        for other in others:
            if matches(pod.owner["spec"]["selector"], other.labels):
                yield f"{pod.name}: selects the pods of {other.name}"


@check
def services_lead_to_ports_of_pods(objects: Objects) -> Iterator[str]:
    for service in of_kind(objects, "Service"):
        chosen = [
            pod
            for pod in pods(objects)
            if matches({"matchLabels": service["spec"]["selector"]}, pod.labels)
        ]
        if len(chosen) != 1:
            yield f"{name_of(service)}: selects the pods of {len(chosen)} workloads"
        for port in service["spec"]["ports"]:
            if not all(port["targetPort"] in pod.port_names for pod in chosen):
                yield f"{name_of(service)}: no port {port['targetPort']} there"


@check
def stateful_sets_have_a_headless_service(objects: Objects) -> Iterator[str]:
    headless = {
        one["metadata"]["name"]
        for one in of_kind(objects, "Service")
        if one["spec"].get("clusterIP") == "None"
    }
    for one in of_kind(objects, "StatefulSet"):
        if one["spec"]["serviceName"] not in headless:
            yield f"{name_of(one)}: serviceName {one['spec']['serviceName']} is no headless Service"
    for pod in pods(objects, "Job"):
        if pod.spec.get("subdomain") not in headless:
            yield f"{pod.name}: subdomain {pod.spec.get('subdomain')} is no headless Service"


@check
def config_maps_are_there(objects: Objects) -> Iterator[str]:
    there = _names(objects, "ConfigMap")
    for pod in pods(objects):
        named = [
            one["configMap"]["name"] for one in pod.spec.get("volumes", []) if "configMap" in one
        ]
        for one in pod.containers:
            named += [
                s["configMapRef"]["name"] for s in one.get("envFrom", []) if "configMapRef" in s
            ]
        for name in set(named) - there:
            yield f"{pod.name}: no ConfigMap {name}"


@check
def secrets_are_those_to_create(objects: Objects) -> Iterator[str]:
    there = _secrets_to_create()
    for pod in pods(objects):
        named: list[tuple[str, str | None]] = []
        for volume in pod.spec.get("volumes", []):
            if "secret" in volume:
                items = volume["secret"].get("items", [{"key": None}])
                named += [(volume["secret"]["secretName"], item["key"]) for item in items]
        for one in pod.containers:
            for variable in one.get("env", []):
                if ref := variable.get("valueFrom", {}).get("secretKeyRef"):
                    named.append((ref["name"], ref["key"]))
        for name, key in named:
            if name not in there or (key is not None and key not in there[name]):
                yield f"{pod.name}: nobody is told to create Secret {name} with {key or 'keys'}"


@check
def claims_are_there(objects: Objects) -> Iterator[str]:
    there = _names(objects, "PersistentVolumeClaim")
    for pod in pods(objects):
        for volume in pod.spec.get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim is not None and claim not in there:
                yield f"{pod.name}: no claim {claim}"


@check
def accounts_and_priorities_are_there(objects: Objects) -> Iterator[str]:
    for pod in pods(objects):
        if pod.spec.get("serviceAccountName") not in _names(objects, "ServiceAccount"):
            yield f"{pod.name}: no account {pod.spec.get('serviceAccountName')}"
        if pod.spec.get("priorityClassName") not in _names(objects, "PriorityClass"):
            yield f"{pod.name}: no priority {pod.spec.get('priorityClassName')}"


@check
def mounts_and_volumes_belong_together(objects: Objects) -> Iterator[str]:
    for pod in pods(objects):
        volumes = {one["name"] for one in pod.spec.get("volumes", [])}
        claimed = pod.owner["spec"].get("volumeClaimTemplates", [])
        volumes |= {one["metadata"]["name"] for one in claimed}
        mounted = {m["name"] for one in pod.containers for m in one.get("volumeMounts", [])}
        if volumes != mounted:
            yield f"{pod.name}: volumes {sorted(volumes)}, mounted {sorted(mounted)}"


@check
def commands_are_those_of_the_images(objects: Objects) -> Iterator[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {*project["scripts"], "torchrun", "redis-server"}
    for name, one in containers(objects):
        if "command" in one:
            yield f"{name}: goes past the image's entry point"
        if one.get("args", [""])[0] not in known:
            yield f"{name}: no program {one.get('args')}"


@check
def settings_are_known_and_in_range(objects: Objects) -> Iterator[str]:
    for name, one in containers(objects):
        given = {
            key.removeprefix("ONESTEP_").lower(): value
            for key, value in settings_of(objects, one).items()
            if key.startswith("ONESTEP_")
        }
        unknown = set(given) - set(Settings.model_fields)
        if unknown:
            yield f"{name}: no settings {sorted(unknown)}"
            continue
        try:
            Settings(**given)
        except (StartError, ValueError) as error:
            yield f"{name}: {error}"


@check
def monitors_find_what_they_scrape(objects: Objects) -> Iterator[str]:
    for monitor in of_kind(objects, "ServiceMonitor"):
        ports = {
            port["name"]
            for one in of_kind(objects, "Service")
            if matches(monitor["spec"]["selector"], one["metadata"].get("labels", {}))
            for port in one["spec"]["ports"]
        }
        if not {one["port"] for one in monitor["spec"]["endpoints"]} <= ports:
            yield f"{name_of(monitor)}: no such port of a Service"
    for monitor in of_kind(objects, "PodMonitor"):
        ports = {
            name
            for pod in pods(objects)
            if matches(monitor["spec"]["selector"], pod.labels)
            for name in pod.port_names
        }
        if not {one["port"] for one in monitor["spec"]["podMetricsEndpoints"]} <= ports:
            yield f"{name_of(monitor)}: no such port of a pod"
