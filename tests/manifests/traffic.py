"""Who may speak to whom, and whether Redis keeps what it was given."""

from __future__ import annotations

from collections.abc import Iterator

from manifests.objects import ROOT, Object, Objects, Pod, check, matches, name_of, of_kind, pods

# Never to be reached by a service that calls addresses of its clients' choice.
INSIDE = {
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
}


def _policies(objects: Objects, pod: Pod, direction: str) -> Objects:
    """Rules for a pod, `ingress` or `egress`."""
    return [
        rule
        for policy in of_kind(objects, "NetworkPolicy")
        if matches(policy["spec"]["podSelector"], pod.labels)
        for rule in policy["spec"].get(direction, [])
    ]


def _admits(rules: Objects, side: str, peer: Pod, port: str) -> bool:
    return any(
        matches(one["podSelector"], peer.labels) and port in {p["port"] for p in rule["ports"]}
        for rule in rules
        for one in rule.get(side, [])
        if "podSelector" in one and "ports" in rule
    )


def _callers_of_redis(objects: Objects) -> list[Pod]:
    return [
        pod
        for pod in pods(objects)
        if any(v["name"] == "ONESTEP_REDIS_URL" for v in pod.main.get("env", []))
    ]


def _is_redis(pod: Pod) -> bool:
    return bool(pod.main["args"][0] == "redis-server")


@check
def nothing_is_allowed_by_default(objects: Objects) -> Iterator[str]:
    closed = [
        one
        for one in of_kind(objects, "NetworkPolicy")
        if one["spec"]["podSelector"] == {}
        and set(one["spec"].get("policyTypes", [])) == {"Ingress", "Egress"}
        and not one["spec"].get("ingress")
        and not one["spec"].get("egress")
    ]
    if not closed:
        yield "no policy denies what no other allows"


@check
def policies_select_pods(objects: Objects) -> Iterator[str]:
    for one in of_kind(objects, "NetworkPolicy"):
        if not any(matches(one["spec"]["podSelector"], pod.labels) for pod in pods(objects)):
            yield f"{name_of(one)}: selects nothing"


@check
def policies_name_peers_and_ports_that_are_there(objects: Objects) -> Iterator[str]:
    for policy in of_kind(objects, "NetworkPolicy"):
        own = [pod for pod in pods(objects) if matches(policy["spec"]["podSelector"], pod.labels)]
        for direction, side in (("ingress", "from"), ("egress", "to")):
            for rule in policy["spec"].get(direction, []):
                selected = [
                    one["podSelector"] for one in rule.get(side, []) if "podSelector" in one
                ]
                peers = [p for p in pods(objects) if any(matches(s, p.labels) for s in selected)]
                if selected and len(peers) < len(selected):
                    yield f"{name_of(policy)}: a peer is not there"
                served = own if direction == "ingress" else peers
                for port in rule.get("ports", []):
                    if isinstance(port["port"], str) and not all(
                        port["port"] in pod.port_names for pod in served
                    ):
                        yield f"{name_of(policy)}: no port {port['port']} there"


@check
def names_can_be_looked_up(objects: Objects) -> Iterator[str]:
    for pod in pods(objects):
        ports = [p for r in _policies(objects, pod, "egress") for p in r.get("ports", [])]
        if not {("UDP", 53), ("TCP", 53)} <= {(p["protocol"], p["port"]) for p in ports}:
            yield f"{pod.name}: cannot ask for names"


@check
def redis_is_reached_by_its_callers_alone(objects: Objects) -> Iterator[str]:
    callers = _callers_of_redis(objects)
    for redis in (pod for pod in pods(objects) if _is_redis(pod)):
        rules = _policies(objects, redis, "ingress")
        for pod in pods(objects):
            is_caller = any(pod.owner is one.owner for one in callers)
            comes_in = _admits(rules, "from", pod, "redis")
            gets_out = _admits(_policies(objects, pod, "egress"), "to", redis, "redis")
            if is_caller and not (comes_in and gets_out):
                yield f"{pod.name}: cannot reach Redis"
            if not is_caller and comes_in:
                yield f"{pod.name}: need not reach Redis"
        if any("namespaceSelector" in one for rule in rules for one in rule.get("from", [])):
            yield f"{redis.name}: is reached from other namespaces"


@check
def redis_elsewhere_is_reached_by_its_callers_alone(objects: Objects) -> Iterator[str]:
    callers = _callers_of_redis(objects)
    if not callers or any(_is_redis(pod) for pod in pods(objects)):
        return
    for pod in pods(objects):
        ranges = {
            one["ipBlock"]["cidr"]
            for rule in _policies(objects, pod, "egress")
            if _leads_to_redis_elsewhere(rule)
            for one in rule["to"]
        }
        if any(pod.owner is one.owner for one in callers) != bool(ranges):
            yield f"{pod.name}: lets out {sorted(ranges)} for Redis"
    for one in objects:
        if one["metadata"]["name"].startswith("onestep-redis"):
            yield f"{name_of(one)}: is left of a Redis that is not here"


def _leads_to_redis_elsewhere(rule: Object) -> bool:
    """One port of a range of at most 256 addresses."""
    blocks = [one.get("ipBlock") for one in rule.get("to", [])]
    is_narrow = all(block and int(block["cidr"].split("/")[1]) >= 24 for block in blocks)
    return bool(blocks) and is_narrow and len(rule.get("ports", [])) == 1


@check
def scrapes_are_let_in(objects: Objects) -> Iterator[str]:
    for pod in pods(objects):
        if "metrics" not in pod.port_names:
            continue
        spaces = [
            one["namespaceSelector"]
            for rule in _policies(objects, pod, "ingress")
            if "metrics" in {port["port"] for port in rule.get("ports", [])}
            for one in rule["from"]
        ]
        wanted = {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
        if spaces != [wanted]:
            yield f"{pod.name}: /metrics is open to {spaces}, not to `monitoring` alone"


@check
def calls_outside_never_lead_inside(objects: Objects) -> Iterator[str]:
    is_redis_elsewhere = not any(_is_redis(pod) for pod in pods(objects))
    for policy in of_kind(objects, "NetworkPolicy"):
        for rule in policy["spec"].get("egress", []):
            if is_redis_elsewhere and _leads_to_redis_elsewhere(rule):
                continue
            for block in (one["ipBlock"] for one in rule.get("to", []) if "ipBlock" in one):
                if not set(block.get("except", [])) >= INSIDE:
                    yield f"{name_of(policy)}: {block['cidr']} leads inside"
                if [port["port"] for port in rule.get("ports", [])] != [443]:
                    yield f"{name_of(policy)}: other ports than 443 outside"


def _redis_conf(one: Object) -> str | None:
    text: str | None = one.get("data", {}).get("redis.conf")
    return text


@check
def redis_keeps_what_it_accepts(objects: Objects) -> Iterator[str]:
    same = (ROOT / "docker" / "redis" / "redis.conf").read_text()
    for one in of_kind(objects, "ConfigMap"):
        if _redis_conf(one) not in (None, same):
            yield f"{name_of(one)}: redis.conf differs from docker/redis/redis.conf"
    for redis in (pod for pod in pods(objects) if _is_redis(pod)):
        claims = {
            one["metadata"]["name"] for one in redis.owner["spec"].get("volumeClaimTemplates", [])
        }
        mounts = {m["name"] for m in redis.main["volumeMounts"] if m["mountPath"] == "/data"}
        if not mounts & claims:
            yield f"{redis.name}: its file dies with the pod"
        if redis.owner["spec"]["replicas"] != 1:
            yield f"{redis.name}: several that know nothing of each other"
