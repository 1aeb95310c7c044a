"""Mistakes in what is scraped, and in what asks for it."""

from __future__ import annotations

from manifests.mutations import Mutation as M

WATCHING = (
    M(
        "scraped_jobs_are_those_of_rules_and_dashboards",
        "ha",
        "PodMonitor/onestep-worker",
        "spec podMetricsEndpoints 0 relabelings",
    ),
    M(
        "scraped_jobs_are_those_of_rules_and_dashboards",
        "ha",
        "ServiceMonitor/onestep-api",
        "spec endpoints 0 relabelings 0 replacement",
        "api",
    ),
    M("scraped_jobs_are_those_of_rules_and_dashboards", "ha", "PodMonitor/onestep-worker", ""),
    M("alerts_and_dashboards_come_with_the_monitors", "ha", "PrometheusRule/onestep-slo", ""),
    M(
        "alerts_and_dashboards_come_with_the_monitors",
        "ha",
        "PrometheusRule/onestep-alerts",
        "spec groups 1 rules 0 expr",
        "vector(0)",
    ),
    M(
        "alerts_and_dashboards_come_with_the_monitors",
        "ha",
        "ConfigMap/onestep-dashboards",
        "metadata labels",
        {},
    ),
    M(
        "autoscalers_ask_for_what_is_scraped",
        "ha",
        "ScaledObject/onestep-worker",
        "spec triggers 0 metadata query",
        'max(onestep_queue_depth{namespace="default"})',
    ),
    M(
        "autoscalers_ask_for_what_is_scraped",
        "ha",
        "ScaledObject/onestep-worker",
        "spec triggers 1 metadata serverAddress",
        "http://prometheus-operated.default.svc:9090",
    ),
)
