"""Whether a rollout, a drained node, a hung engine or a burst loses nobody's picture."""

from __future__ import annotations

from collections.abc import Iterator

from manifests.objects import (
    SERVERS,
    Object,
    Objects,
    Pod,
    check,
    matches,
    name_of,
    of_kind,
    pods,
    settings_of,
)
from service.processes.api import FINISH_MARGIN_S
from service.processes.worker import DRAIN_S as WORKER_DRAIN_S
from service.settings import Settings

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
# What ends the process after its drain: connections that close, Redis that is told.
END_S = 5
# Kubernetes' own defaults.
PERIOD_S, FAILURES = 10, 3
GPU = "nvidia.com/gpu"
# Loading plans and recording them; a CPU's model is warm within seconds.
GPU_START_S, START_S = 600, 60


def _has_gpu(one: Object) -> bool:
    return GPU in one.get("resources", {}).get("limits", {})


def _pre_stop_s(one: Object) -> int:
    command = one.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    return int(command[1]) if command[:1] == ["sleep"] else 0


def _scaled(objects: Objects) -> list[tuple[Object, Object]]:
    """Each autoscaler with its target."""
    scalers = of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject")
    return [(one, one["spec"]["scaleTargetRef"]) for one in scalers]


def _is_behind_a_service(objects: Objects, pod: Pod) -> bool:
    return any(
        matches({"matchLabels": one["spec"]["selector"]}, pod.labels)
        for one in of_kind(objects, "Service")
        if one["spec"].get("clusterIP") != "None"
    )


@check
def servers_have_three_probes(objects: Objects) -> Iterator[str]:
    for pod in pods(objects, *SERVERS):
        for probe in PROBES:
            if probe not in pod.main:
                yield f"{pod.name}: no {probe}"


@check
def probes_ask_ports_that_are_there(objects: Objects) -> Iterator[str]:
    for pod in pods(objects, *SERVERS):
        for probe in PROBES:
            for form in ("httpGet", "tcpSocket"):
                port = pod.main.get(probe, {}).get(form, {}).get("port")
                if port is not None and port not in pod.port_names:
                    yield f"{pod.name}: {probe} asks port {port}"


@check
def liveness_is_the_process_and_readiness_the_service(objects: Objects) -> Iterator[str]:
    """A liveness that asks for readiness restarts everything when Redis is away."""
    for pod in pods(objects, "Deployment"):
        for probe, path in (("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
            asked = pod.main.get(probe, {}).get("httpGet", {}).get("path")
            if asked != path:
                yield f"{pod.name}: {probe} asks {asked}"


@check
def starts_have_time(objects: Objects) -> Iterator[str]:
    for pod in pods(objects, *SERVERS):
        probe = pod.main.get("startupProbe", {})
        budget_s = probe.get("periodSeconds", PERIOD_S) * probe.get("failureThreshold", FAILURES)
        needed_s = GPU_START_S if _has_gpu(pod.main) else START_S
        if budget_s < needed_s:
            yield f"{pod.name}: {budget_s} s for a start that may take {needed_s}"


@check
def grace_is_longer_than_a_drain(objects: Objects) -> Iterator[str]:
    for pod in pods(objects, "Deployment"):
        given = settings_of(objects, pod.main)
        default = Settings.model_fields
        deadline_s = float(given.get("ONESTEP_DEADLINE_S", default["deadline_s"].default))
        run_s = float(given.get("ONESTEP_MAX_RUN_S", default["max_run_s"].default))
        is_api = pod.main["args"][:2] == ["onestep", "api"]
        drain_s = deadline_s + FINISH_MARGIN_S if is_api else min(WORKER_DRAIN_S, run_s)
        needed_s = _pre_stop_s(pod.main) + drain_s + END_S
        if pod.spec.get("terminationGracePeriodSeconds", 30) < needed_s:
            yield f"{pod.name}: killed before {needed_s:.0f} s of drain have passed"


@check
def connections_have_moved_before_a_stop(objects: Objects) -> Iterator[str]:
    for pod in pods(objects):
        if _is_behind_a_service(objects, pod) and _pre_stop_s(pod.main) < 3:
            yield f"{pod.name}: stops while connections still arrive"


@check
def pods_spread_over_nodes(objects: Objects) -> Iterator[str]:
    for pod in pods(objects, "Deployment"):
        keys = {
            one["topologyKey"]
            for one in pod.spec.get("topologySpreadConstraints", [])
            if matches(one["labelSelector"], pod.labels)
        }
        if "kubernetes.io/hostname" not in keys:
            yield f"{pod.name}: may lie on one node as a whole"


@check
def rollouts_keep_what_serves(objects: Objects) -> Iterator[str]:
    for pod in pods(objects, "Deployment"):
        rollout = pod.owner["spec"].get("strategy", {}).get("rollingUpdate", {})
        wanted = (0, 1) if _has_gpu(pod.main) else (1, 0)
        if (rollout.get("maxSurge"), rollout.get("maxUnavailable")) != wanted:
            why = "a spare GPU is rarely there" if _has_gpu(pod.main) else "fewer would serve"
            yield f"{pod.name}: {rollout}; {why}"


@check
def deployments_have_a_budget(objects: Objects) -> Iterator[str]:
    budgets = of_kind(objects, "PodDisruptionBudget")
    for pod in pods(objects, "Deployment"):
        if sum(matches(one["spec"]["selector"], pod.labels) for one in budgets) != 1:
            yield f"{pod.name}: not exactly one budget for disruptions"


@check
def budgets_let_a_node_drain(objects: Objects) -> Iterator[str]:
    for budget in of_kind(objects, "PodDisruptionBudget"):
        chosen = [pod for pod in pods(objects) if matches(budget["spec"]["selector"], pod.labels)]
        if not chosen:
            yield f"{name_of(budget)}: protects nothing"
        if budget["spec"].get("maxUnavailable", 0) < 1:
            yield f"{name_of(budget)}: no pod may ever be moved"


@check
def autoscalers_have_targets(objects: Objects) -> Iterator[str]:
    for scaler, target in _scaled(objects):
        if name_of({"kind": target["kind"], "metadata": target}) not in map(name_of, objects):
            yield f"{name_of(scaler)}: no {target['kind']}/{target['name']}"


@check
def a_target_has_one_autoscaler_and_no_count(objects: Objects) -> Iterator[str]:
    names = [target["name"] for _, target in _scaled(objects)]
    for one in of_kind(objects, "Deployment"):
        times = names.count(one["metadata"]["name"])
        if times > 1:
            yield f"{name_of(one)}: {times} autoscalers"
        if times == ("replicas" in one["spec"]):
            yield f"{name_of(one)}: a count beside an autoscaler, or neither"


@check
def autoscalers_never_go_to_zero_or_without_end(objects: Objects) -> Iterator[str]:
    """KEDA takes numbers as text, and its first value costs a cold start."""
    for scaler, _ in _scaled(objects):
        spec = scaler["spec"]
        least = spec.get("minReplicas", spec.get("minReplicaCount", 0))
        most = spec.get("maxReplicas", spec.get("maxReplicaCount", 0))
        if not 2 <= least < most <= 32:
            yield f"{name_of(scaler)}: from {least} to {most}"


@check
def gpus_are_asked_for_as_a_whole(objects: Objects) -> Iterator[str]:
    for pod in pods(objects):
        if not any(_has_gpu(one) for one in pod.containers):
            continue
        if GPU not in {one.get("key") for one in pod.spec.get("tolerations", [])}:
            yield f"{pod.name}: does not tolerate nodes with GPUs"
        for one in pod.containers:
            sides = one.get("resources", {})
            if sides.get("requests", {}).get(GPU) != sides.get("limits", {}).get(GPU):
                yield f"{pod.name}: container {one['name']} asks for another number than its limit"
            if not _has_gpu(one):
                yield f"{pod.name}: container {one['name']} sees no GPU"


@check
def workers_on_gpus_have_plans(objects: Objects) -> Iterator[str]:
    """The plans are built before, in the folder in which the worker looks."""
    for pod in pods(objects, "Deployment"):
        if not _has_gpu(pod.main):
            continue
        builders = [one for one in pod.containers if one["args"][:1] == ["onestep-engines"]]
        folders = [
            {(mount["name"], mount["mountPath"]) for mount in one.get("volumeMounts", [])}
            for one in (*builders, pod.main)
        ]
        model = settings_of(objects, pod.main)["ONESTEP_MODEL"]
        if len(builders) != 1 or ("plans", f"/app/{model}/engines") not in set.intersection(
            *folders
        ):
            yield f"{pod.name}: no plans where the worker looks"
