"""Mistakes in how objects serve together."""

from __future__ import annotations

from manifests.mutations import API, COMPONENT, INIT, JOB, MAIN, POD, REDIS, WORKER
from manifests.mutations import Mutation as M

AVAILABILITY = (
    M("servers_have_three_probes", "cpu", WORKER, f"{MAIN} livenessProbe"),
    M("servers_have_three_probes", "cpu", REDIS, f"{MAIN} startupProbe"),
    M(
        "probes_ask_ports_that_are_there",
        "cpu",
        WORKER,
        f"{MAIN} livenessProbe httpGet port",
        "http",
    ),
    M(
        "liveness_is_the_process_and_readiness_the_service",
        "cpu",
        API,
        f"{MAIN} livenessProbe httpGet path",
        "/readyz",
    ),
    M(
        "liveness_is_the_process_and_readiness_the_service",
        "cpu",
        WORKER,
        f"{MAIN} readinessProbe httpGet path",
        "/livez",
    ),
    M("starts_have_time", "gpu", WORKER, f"{MAIN} startupProbe failureThreshold", 60),
    M("starts_have_time", "cpu", REDIS, f"{MAIN} startupProbe failureThreshold", 3),
    M("grace_is_longer_than_a_drain", "cpu", API, f"{POD} terminationGracePeriodSeconds", 40),
    M("grace_is_longer_than_a_drain", "cpu", WORKER, f"{POD} terminationGracePeriodSeconds"),
    M(
        "grace_is_longer_than_a_drain",
        "cpu",
        "ConfigMap/onestep-settings",
        "data ONESTEP_DEADLINE_S",
        "120",
    ),
    M("connections_have_moved_before_a_stop", "cpu", API, f"{MAIN} lifecycle"),
    M("pods_spread_over_nodes", "ha", WORKER, f"{POD} topologySpreadConstraints 0"),
    M("rollouts_keep_what_serves", "gpu", WORKER, "spec strategy rollingUpdate maxSurge", 1),
    M("rollouts_keep_what_serves", "cpu", API, "spec strategy rollingUpdate maxUnavailable", 1),
    M("deployments_have_a_budget", "cpu", "PodDisruptionBudget/onestep-api", ""),
    M(
        "budgets_let_a_node_drain",
        "cpu",
        "PodDisruptionBudget/onestep-worker",
        "spec maxUnavailable",
        0,
    ),
    M(
        "budgets_let_a_node_drain",
        "cpu",
        "PodDisruptionBudget/onestep-worker",
        f"spec selector matchLabels {COMPONENT}",
        "engine",
    ),
    M(
        "autoscalers_have_targets",
        "cpu",
        "HorizontalPodAutoscaler/onestep-api",
        "spec scaleTargetRef name",
        "api",
    ),
    M(
        "autoscalers_have_targets",
        "ha",
        "ScaledObject/onestep-worker",
        "spec scaleTargetRef kind",
        "StatefulSet",
    ),
    M(
        "a_target_has_one_autoscaler_and_no_count",
        "ha",
        "ScaledObject/onestep-api",
        "spec scaleTargetRef name",
        "onestep-worker",
    ),
    M("a_target_has_one_autoscaler_and_no_count", "ha", WORKER, "spec replicas", 3),
    M(
        "autoscalers_never_go_to_zero_or_without_end",
        "ha",
        "ScaledObject/onestep-worker",
        "spec minReplicaCount",
        0,
    ),
    M(
        "autoscalers_never_go_to_zero_or_without_end",
        "ha",
        "ScaledObject/onestep-worker",
        "spec maxReplicaCount",
        1000,
    ),
    M("gpus_are_asked_for_as_a_whole", "gpu", WORKER, f"{INIT} resources limits nvidia.com/gpu"),
    M("gpus_are_asked_for_as_a_whole", "distill", JOB, f"{POD} tolerations"),
    M("workers_on_gpus_have_plans", "gpu", WORKER, f"{INIT}"),
    M(
        "workers_on_gpus_have_plans",
        "gpu",
        WORKER,
        f"{MAIN} volumeMounts 1 mountPath",
        "/app/engines",
    ),
)

TRAFFIC = (
    M("nothing_is_allowed_by_default", "cpu", "NetworkPolicy/onestep-deny", ""),
    M(
        "nothing_is_allowed_by_default",
        "cpu",
        "NetworkPolicy/onestep-deny",
        "spec policyTypes",
        ["Ingress"],
    ),
    M(
        "policies_select_pods",
        "cpu",
        "NetworkPolicy/onestep-api",
        f"spec podSelector matchLabels {COMPONENT}",
        "web",
    ),
    M(
        "policies_name_peers_and_ports_that_are_there",
        "cpu",
        "NetworkPolicy/onestep-api",
        "spec ingress 0 ports 0 port",
        "https",
    ),
    M(
        "policies_name_peers_and_ports_that_are_there",
        "cpu",
        "NetworkPolicy/onestep-redis",
        f"spec ingress 0 from 0 podSelector matchLabels {COMPONENT}",
        "web",
    ),
    M("names_can_be_looked_up", "cpu", "NetworkPolicy/onestep-names", ""),
    M(
        "redis_is_reached_by_its_callers_alone",
        "cpu",
        "NetworkPolicy/onestep-worker",
        "spec egress",
    ),
    M(
        "redis_is_reached_by_its_callers_alone",
        "cpu",
        "NetworkPolicy/onestep-redis",
        "spec ingress 0 from",
        {"namespaceSelector": {}},
        extends=True,
    ),
    M("redis_is_reached_by_its_callers_alone", "cpu", WORKER, f"{MAIN} env 0"),
    M("scrapes_are_let_in", "ha", "NetworkPolicy/onestep-worker", "spec ingress"),
    M(
        "scrapes_are_let_in",
        "ha",
        "NetworkPolicy/onestep-api",
        "spec ingress 1 from 0 namespaceSelector",
        {},
    ),
    M(
        "calls_outside_never_lead_inside",
        "cpu",
        "NetworkPolicy/onestep-api",
        "spec egress 1 to 0 ipBlock except 3",
    ),
    M("calls_outside_never_lead_inside", "cpu", "NetworkPolicy/onestep-api", "spec egress 1 ports"),
    M(
        "redis_keeps_what_it_accepts",
        "cpu",
        "ConfigMap/onestep-redis",
        "data redis.conf",
        "maxmemory-policy allkeys-lru",
    ),
    M("redis_keeps_what_it_accepts", "cpu", REDIS, f"{MAIN} volumeMounts 0 name", "tmp"),
    M("redis_keeps_what_it_accepts", "cpu", REDIS, "spec replicas", 3),
)

ELSEWHERE = (
    M(
        "redis_elsewhere_is_reached_by_its_callers_alone",
        "ha-external-redis",
        "NetworkPolicy/onestep-worker",
        "spec egress",
    ),
    M(
        "redis_elsewhere_is_reached_by_its_callers_alone",
        "ha-external-redis",
        "NetworkPolicy/onestep-api",
        "spec egress 0 to 0 ipBlock cidr",
        "10.0.0.0/8",
    ),
    M(
        "redis_elsewhere_is_reached_by_its_callers_alone",
        "ha-external-redis",
        "ServiceAccount/onestep-api",
        "",
        lambda one: [one, {**one, "metadata": {**one["metadata"], "name": "onestep-redis"}}],
    ),
    M(
        "calls_outside_never_lead_inside",
        "ha-external-redis",
        "NetworkPolicy/onestep-worker",
        "spec egress 0 ports",
    ),
    M(
        "calls_outside_never_lead_inside",
        "ha",
        "NetworkPolicy/onestep-worker",
        "spec egress 0 to 0",
        {"ipBlock": {"cidr": "192.0.2.1/32"}},
    ),
)

BETWEEN = (*AVAILABILITY, *TRAFFIC, *ELSEWHERE)
