"""Whether what is scraped in a cluster is what rules, dashboards and autoscalers ask for.

Owns the labels that the Prometheus operator gives to a target. Rules and dashboards are written for
docker/prometheus/prometheus.yml; a job of another name would leave them empty without a word.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import yaml

from manifests.objects import ROOT, Object, Objects, check, matches, name_of, of_kind

MONITORS = ("ServiceMonitor", "PodMonitor")
RULE_FILES = sorted((ROOT / "docker" / "prometheus").glob("*.rules.yml"))
BOARDS = ROOT / "docker" / "grafana" / "dashboards"
# What a target is known by here and there; all else belongs to one way of finding it.
EVERYWHERE = {"job", "instance"}
# What the operator adds. Source: prometheus-operator, Documentation/api-reference/api.md.
IN_A_CLUSTER = {"namespace", "service", "endpoint", "pod", "container"}
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")


def composed_jobs() -> set[str]:
    """Names of the service's own jobs in the composed Prometheus."""
    text = (ROOT / "docker" / "prometheus" / "prometheus.yml").read_text()
    names = {job["job_name"] for job in yaml.safe_load(text)["scrape_configs"]}
    return names - {"prometheus", "dcgm"}


@functools.cache
def expressions() -> tuple[str, ...]:
    """Every query of rules and dashboards."""
    found = [
        rule["expr"]
        for path in RULE_FILES
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]
    for path in sorted(BOARDS.glob("*.json")):
        panels = json.loads(path.read_text())["panels"]
        found += [target["expr"] for panel in panels for target in panel["targets"]]
    return tuple(found)


def asked_jobs(jobs: set[str], queries: tuple[str, ...]) -> Iterator[str]:
    """Queries that name a job and that none, or not all, of these jobs answer."""
    for query in queries:
        for label, sign, value in _MATCHER.findall(query):
            if label == "job":
                is_regex, is_wanted = sign.endswith("~"), not sign.startswith("!")
                taken = {
                    one
                    for one in jobs
                    if bool(re.fullmatch(value, one) if is_regex else one == value) == is_wanted
                }
                if taken != jobs:
                    yield f"{query}: does not see {', '.join(sorted(jobs - taken))}"


def labels_asked_for(query: str) -> set[str]:
    """Labels of targets that a query chooses or groups by."""
    named = {label for label, _, _ in _MATCHER.findall(query)}
    for names in _GROUPING.findall(query):
        named |= {name.strip() for name in names.split(",") if name.strip()}
    return named & (EVERYWHERE | IN_A_CLUSTER)


def _jobs(objects: Objects, monitor: Object) -> set[str]:
    """The label `job` of a monitor's targets."""
    endpoints = monitor["spec"].get("endpoints") or monitor["spec"]["podMetricsEndpoints"]
    found = set()
    for endpoint in endpoints:
        written = [
            one["replacement"]
            for one in endpoint.get("relabelings", [])
            if one["targetLabel"] == "job"
        ]
        found |= set(written[-1:]) or _default_jobs(objects, monitor)
    return found


def _default_jobs(objects: Objects, monitor: Object) -> set[str]:
    if monitor["kind"] == "PodMonitor":
        return {f"{monitor['metadata']['namespace']}/{monitor['metadata']['name']}"}
    return {
        one["metadata"]["name"]
        for one in of_kind(objects, "Service")
        if matches(monitor["spec"]["selector"], one["metadata"].get("labels", {}))
    }


@check
def scraped_jobs_are_those_of_rules_and_dashboards(objects: Objects) -> Iterator[str]:
    monitors = of_kind(objects, *MONITORS)
    if not monitors:
        return
    for monitor in monitors:
        for job in _jobs(objects, monitor) - composed_jobs():
            yield f"{name_of(monitor)}: its job is called {job}, which nothing asks for"
    jobs = {job for monitor in monitors for job in _jobs(objects, monitor)}
    for job in composed_jobs() - jobs:
        yield f"policy: nothing in the cluster is scraped as {job}"


@check
def alerts_and_dashboards_come_with_the_monitors(objects: Objects) -> Iterator[str]:
    if not of_kind(objects, *MONITORS):
        return
    there: list[Any] = []
    for one in of_kind(objects, "PrometheusRule"):
        there += one["spec"]["groups"]
    for path in RULE_FILES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            if group not in there:
                yield f"policy: the group {group['name']} of {path.name} is not in the cluster"
    boards: dict[str, str] = {}
    for one in of_kind(objects, "ConfigMap"):
        if one["metadata"].get("labels", {}).get("grafana_dashboard") == "1":
            boards |= one["data"]
    for path in BOARDS.glob("*.json"):
        if boards.get(path.name) != path.read_text():
            yield f"policy: the dashboard {path.name} is not in the cluster"


@check
def autoscalers_ask_for_what_is_scraped(objects: Objects) -> Iterator[str]:
    spaces = {one["metadata"]["name"] for one in of_kind(objects, "Namespace")}
    scrapers = {
        one["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        for policy in of_kind(objects, "NetworkPolicy")
        for rule in policy["spec"].get("ingress", [])
        if "metrics" in {port["port"] for port in rule.get("ports", [])}
        for one in rule["from"]
        if one.get("namespaceSelector", {}).get("matchLabels")
    }
    for scaler in of_kind(objects, "ScaledObject"):
        for trigger in scaler["spec"]["triggers"]:
            if trigger["type"] != "prometheus":
                continue
            if not of_kind(objects, *MONITORS):
                yield f"{name_of(scaler)}: asks a Prometheus that scrapes nothing"
            query = trigger["metadata"]["query"]
            for label, _, value in _MATCHER.findall(query):
                if label == "namespace" and value not in spaces:
                    yield f"{name_of(scaler)}: nothing is scraped in {value}"
            host = urlsplit(trigger["metadata"]["serverAddress"]).hostname or ""
            if host.split(".")[1:2] not in [[one] for one in scrapers]:
                yield f"{name_of(scaler)}: {host} is not where /metrics may be read from"
