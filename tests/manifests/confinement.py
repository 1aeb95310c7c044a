"""What a container may do on its node, and what it may take of it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from manifests.objects import (
    Objects,
    check,
    containers,
    name_of,
    of_kind,
    pods,
    quantity,
    settings_of,
)

RESOURCES = ("cpu", "memory", "ephemeral-storage")
# Built from this repository, so their digests are the operator's to pin.
OWN_IMAGES = re.compile(r"onestep-[a-z-]+:\d+\.\d+\.\d+")
FOREIGN_IMAGES = re.compile(r"[^:@]+:[\w.-]+@sha256:[0-9a-f]{64}")
CREDENTIALS = re.compile(r"://[^/\s]*:[^/\s]+@|requirepass|whsec_|os_\w{8,}\.")


@check
def runs_as_non_root(objects: Objects) -> Iterator[str]:
    for pod in pods(objects):
        of_pod = pod.spec.get("securityContext", {})
        if of_pod.get("runAsNonRoot") is not True or not of_pod.get("runAsUser"):
            yield f"{pod.name}: the pod may run as root"
        for one in pod.containers:
            own = one.get("securityContext", {})
            if own.get("runAsUser") == 0 or own.get("runAsNonRoot") is False:
                yield f"{pod.name}: container {one['name']} may run as root"


@check
def root_filesystem_is_read_only(objects: Objects) -> Iterator[str]:
    for name, one in containers(objects):
        if one.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            yield f"{name}: can write to its image"


@check
def all_capabilities_are_dropped(objects: Objects) -> Iterator[str]:
    for name, one in containers(objects):
        capabilities = one.get("securityContext", {}).get("capabilities", {})
        if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
            yield f"{name}: keeps capabilities"


@check
def privileges_cannot_grow(objects: Objects) -> Iterator[str]:
    for name, one in containers(objects):
        context = one.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            yield f"{name}: may gain privileges"


@check
def seccomp_profile_is_the_runtimes(objects: Objects) -> Iterator[str]:
    for pod in pods(objects):
        profile = pod.spec.get("securityContext", {}).get("seccompProfile", {})
        if profile.get("type") != "RuntimeDefault":
            yield f"{pod.name}: no seccomp profile"


@check
def nothing_of_the_node_is_shared(objects: Objects) -> Iterator[str]:
    for pod in pods(objects):
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(field):
                yield f"{pod.name}: {field}"
        for volume in pod.spec.get("volumes", []):
            if "hostPath" in volume:
                yield f"{pod.name}: volume {volume['name']} is a folder of the node"
        for one in pod.containers:
            if any("hostPort" in port for port in one.get("ports", [])):
                yield f"{pod.name}: container {one['name']} takes a port of the node"


@check
def no_token_is_mounted(objects: Objects) -> Iterator[str]:
    for pod in pods(objects):
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.name}: mounts a token of the cluster"
    for account in of_kind(objects, "ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield f"{name_of(account)}: gives out its token"


@check
def service_links_are_off(objects: Objects) -> Iterator[str]:
    """A Service called onestep-api would set ONESTEP_API_PORT, an unknown setting: no start."""
    for pod in pods(objects):
        if pod.spec.get("enableServiceLinks") is not False:
            yield f"{pod.name}: Services become variables"


@check
def resources_are_requested_and_limited(objects: Objects) -> Iterator[str]:
    for name, one in containers(objects):
        for side in ("requests", "limits"):
            for missing in set(RESOURCES) - set(one.get("resources", {}).get(side, {})):
                yield f"{name}: no {side} of {missing}"


@check
def requests_are_within_limits(objects: Objects) -> Iterator[str]:
    for name, one in containers(objects):
        limits = one.get("resources", {}).get("limits", {})
        for what, asked in one.get("resources", {}).get("requests", {}).items():
            if what in limits and quantity(asked) > quantity(limits[what]):
                yield f"{name}: asks for more {what} than its limit"


@check
def threads_fit_the_limit(objects: Objects) -> Iterator[str]:
    for pod in pods(objects, "Deployment"):
        if pod.main["args"][:2] != ["onestep", "worker"]:
            continue
        threads = settings_of(objects, pod.main).get("ONESTEP_NUM_THREADS")
        limit = pod.main.get("resources", {}).get("limits", {}).get("cpu", 0)
        if threads is None or int(threads) > quantity(limit):
            yield f"{pod.name}: ONESTEP_NUM_THREADS {threads} over {limit} cores is throttled"


@check
def images_are_pinned(objects: Objects) -> Iterator[str]:
    for name, one in containers(objects):
        if not OWN_IMAGES.fullmatch(one["image"]) and not FOREIGN_IMAGES.fullmatch(one["image"]):
            yield f"{name}: {one['image']} is not pinned"


@check
def temporary_folders_are_bounded(objects: Objects) -> Iterator[str]:
    for pod in pods(objects):
        for volume in pod.spec.get("volumes", []):
            if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
                yield f"{pod.name}: volume {volume['name']} may fill the node"
        for one in pod.containers:
            if "/tmp" not in {mount["mountPath"] for mount in one.get("volumeMounts", [])}:
                yield f"{pod.name}: container {one['name']} has no folder for temporary files"


@check
def secrets_are_referred_to_and_not_written(objects: Objects) -> Iterator[str]:
    for secret in of_kind(objects, "Secret"):
        yield f"{name_of(secret)}: is written in the manifests"
    for one in of_kind(objects, "ConfigMap"):
        for key, value in one.get("data", {}).items():
            if CREDENTIALS.search(value):
                yield f"{name_of(one)}: {key} holds a credential"
    for name, one in containers(objects):
        for variable in one.get("env", []):
            if CREDENTIALS.search(variable.get("value", "")):
                yield f"{name}: {variable['name']} holds a credential"
