"""What the operators' pages tell to do can be done: their files, lines and names.

No engine and no cluster is here. Overlays are rendered and asked by the checks, Compose files are
merged and asked, and every line of a shell is read: what it names must be there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import availability, confinement, references, traffic, watching
from manifests.composed import FILES, STACK_CHECKS, load, with_file
from manifests.objects import CHECKS, OVERLAYS, ROOT, Objects, name_of, of_kind, pods, render
from manifests.programs import program, run

from service.settings import Settings

# Importing these is what registers their checks.
assert all((availability, confinement, references, traffic, watching))

PAGES = ("deploy", "operate", "runbook", "observability", "scale-out", "access", "capacity")
_FENCE = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_SPOKEN = re.compile(r"`([^`]+)`")


def _text(page: str) -> str:
    return (ROOT / "docs" / f"{page}.md").read_text()


def _blocks(language: str, *pages: str) -> list[str]:
    return [
        body for page in pages for found, body in _FENCE.findall(_text(page)) if found == language
    ]


def _shell_lines() -> list[str]:
    """Every command of the pages: of blocks, and between backticks."""
    lines = [
        line.split(" #")[0].strip()
        for block in _blocks("sh", *PAGES)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    for page in PAGES:
        spoken = _SPOKEN.findall(_FENCE.sub("", _text(page)))
        lines += [" ".join(one.split()) for one in spoken if " " in one]
    return [line for line in lines if line]


def _written(key: str) -> list[dict[str, Any]]:
    """The YAML files of the pages that have this key."""
    files = [yaml.safe_load(block) for block in _blocks("yaml", "deploy", "operate")]
    return [file for file in files if key in file]


OVERLAYS_SHOWN = [file for file in _written("kind") if file["kind"] == "Kustomization"]
STACKS_SHOWN = _written("services")


def _rendered(file: dict[str, Any], folder: Path) -> Objects:
    shutil.copytree(ROOT / "k8s", folder / "k8s", ignore=shutil.ignore_patterns("mine"))
    shutil.copytree(ROOT / "docker" / "grafana", folder / "docker" / "grafana")
    (folder / "k8s" / "mine").mkdir()
    (folder / "k8s" / "mine" / "kustomization.yaml").write_text(yaml.safe_dump(file))
    ran = run(program("kubectl"), "kustomize", folder / "k8s" / "mine")
    assert ran.returncode == 0 and not ran.stderr, ran.stderr
    return list(yaml.safe_load_all(ran.stdout))


@pytest.mark.parametrize("index", range(4))
def test_an_overlay_of_ones_own_keeps_every_promise(index: int, tmp_path: Path) -> None:
    assert len(OVERLAYS_SHOWN) == 4
    objects = _rendered(OVERLAYS_SHOWN[index], tmp_path)
    for name, rule in CHECKS.items():
        found = list(rule(objects))
        if name == "images_are_pinned":
            # Of a registry of one's own, by a tag; and no image of this project is forgotten.
            assert all(" registry.example/" in line for line in found), found
            continue
        assert found == [], name


def test_an_overlay_of_ones_own_moves_all_that_goes_with_a_model(tmp_path: Path) -> None:
    (shown,) = (file for file in OVERLAYS_SHOWN if "models/mine" in str(file))
    objects = _rendered(shown, tmp_path)
    assert "models/mine" in str(of_kind(objects, "ConfigMap"))
    assert "models/emoji" not in str([pod.spec for pod in pods(objects)])
    (worker,) = (pod for pod in pods(objects) if name_of(pod.owner).endswith("/onestep-worker"))
    assert str(worker.spec).count("/app/models/mine/engines") == 2


def test_every_overlay_of_the_repository_is_described() -> None:
    assert re.findall(r"^\| `k8s/overlays/([\w-]+)`", _text("deploy"), re.M) == list(OVERLAYS)


@pytest.mark.parametrize("index", range(2))
def test_a_compose_file_of_ones_own_fits(index: int, tmp_path: Path) -> None:
    assert len(STACKS_SHOWN) == 2
    shown = STACKS_SHOWN[index]
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(shown))
    checked = run(
        program("check-jsonschema"),
        *("--builtin-schema", "vendor.compose-spec", tmp_path / "compose.yaml"),
    )
    assert checked.returncode == 0, checked.stdout
    stack = with_file(load("default"), shown)
    for name, rule in STACK_CHECKS.items():
        found = list(rule(stack))
        # Images, health and folders of one's own are the operator's to settle.
        own = ("stack_images_are_pinned", "services_tell_their_health", "what_is_named_is_there")
        assert [line for line in found if name not in own] == []


def test_a_model_of_ones_own_reaches_api_and_workers() -> None:
    (shown,) = (file for file in STACKS_SHOWN if "worker" in file["services"])
    stack = with_file(load("default"), shown)
    for name in ("api", "worker"):
        service = stack["services"][name]
        assert service["environment"]["ONESTEP_MODEL"] == "models/mine"
        assert service["environment"]["ONESTEP_REDIS_URL"]
        assert "./models/mine:/app/models/mine:ro" in service["volumes"]


def test_the_receiver_of_alerts_is_where_prometheus_looks() -> None:
    (shown,) = (file for file in STACKS_SHOWN if "alertmanager" in file["services"])
    prometheus = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())
    (found,) = prometheus["alerting"]["alertmanagers"][0]["dns_sd_configs"]
    assert found["names"] == list(shown["services"])
    networks = load("default")["services"]["prometheus"]["networks"]
    assert set(networks) & set(shown["services"]["alertmanager"]["networks"])


def test_files_that_are_named_are_there() -> None:
    made = {"docker/secrets", "docker/compose.mine.yaml", "k8s/mine"}
    for page in PAGES:
        for path in re.findall(r"(?<![\w/.-])(?:docker|k8s|tests)/[\w./-]+\w", _text(page)):
            is_made = any(path == one or path.startswith(f"{one}/") for one in made)
            assert is_made or (ROOT / path).exists(), f"{page}: {path}"


def test_links_lead_to_headings_that_are_there() -> None:
    for page in PAGES:
        for name, anchor in re.findall(r"\]\((?:([\w-]+)\.md)?#([\w-]+)\)", _text(page)):
            titles = re.findall(r"^#+ (.+)$", _text(name or page), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in titles}
            assert anchor in anchors, f"{page}: {name}#{anchor}"


def test_settings_that_are_named_are_there() -> None:
    for page in PAGES:
        for name in re.findall(r"ONESTEP_([A-Z_]*[A-Z])\b(?!_)", _text(page)):
            known = name.lower() in Settings.model_fields or name == "API_KEY"
            assert known, f"{page}: ONESTEP_{name}"


def test_targets_of_make_are_there() -> None:
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {
        found[1] for line in _shell_lines() if (found := re.match(r"make (?!-)([\w-]+)", line))
    }
    assert {"images", "load"} <= named <= set(targets)


def test_composed_services_that_are_named_are_there() -> None:
    services = {name for files in FILES for name in load(files)["services"]}
    verbs = r"(?:up|run|exec|logs|restart|stop)"
    # Options that take a value take it with them.
    options = r"(?:\s+(?:-e|--since|--scale|--entrypoint)\s+\S+|\s+-{1,2}[\w-]+)*"
    named = set()
    for line in _shell_lines():
        for rest in re.findall(rf"docker compose {verbs}{options}\s+([a-z][\w-]*)", line):
            named.add(rest)
        named |= set(re.findall(r"--scale (\w+)=", line))
    assert {"redis", "keys", "worker", "api", "grafana"} <= named <= services


def test_objects_of_a_cluster_that_are_named_are_there() -> None:
    known = {name_of(one).lower() for overlay in OVERLAYS for one in render(overlay)}
    named = {
        one
        for line in _shell_lines()
        if "kubectl" in line
        for one in re.findall(r"(?:deployment|statefulset|service)/[\w-]+", line)
    }
    assert {"deployment/onestep-api", "deployment/onestep-worker"} <= named <= known
    # Of the StatefulSet and its claim.
    assert {"statefulset/onestep-redis"} <= known
    secrets = {
        found
        for line in _shell_lines()
        for found in re.findall(r"(?:create|get) secret (?:generic )?([\w-]+)", line)
    }
    example = yaml.safe_load_all((ROOT / "k8s" / "secrets.example.yaml").read_text())
    assert secrets == {one["metadata"]["name"] for one in example}


def test_a_keys_command_that_is_named_is_there() -> None:
    help_text = subprocess.run(
        [program("onestep"), "keys", "--help"], capture_output=True, text=True
    ).stdout
    named = {
        found[1]
        for line in _shell_lines()
        if (found := re.search(r"(?:rm keys|onestep keys) (\w+)", line))
    }
    assert {"add", "list", "rotate"} <= named
    assert all(one in help_text for one in named)


def test_secrets_are_made_of_the_lines_that_say_how(tmp_path: Path) -> None:
    """The lines of a first start, with a client that only shows what it would send."""
    (block,) = (one for one in _blocks("sh", "deploy") if "create secret" in one)
    lines = block.replace("\\\n", " ").splitlines()
    wanted = [
        re.sub(r"(kubectl .*create .*)", r"\1 --dry-run=client -o yaml; echo ---", line)
        for line in lines
        if line.startswith(("password=", "kubectl create", "kubectl -n onestep create", "ONESTEP_"))
    ]
    (tmp_path / "k8s" / "mine").mkdir(parents=True)
    script = "\n".join(line.split(" #")[0].split("  #")[0] for line in wanted)
    path = f"{Path(program('onestep')).parent}:{Path(program('kubectl')).parent}:/usr/bin:/bin"
    ran = run("sh", "-euc", script, cwd=tmp_path, env={"PATH": path, "HOME": str(tmp_path)})
    assert ran.returncode == 0, ran.stderr
    documents = "\n".join(line for line in ran.stdout.splitlines() if not line.startswith("os_"))
    made = {one["metadata"]["name"]: one for one in yaml.safe_load_all(documents) if one}
    example = yaml.safe_load_all((ROOT / "k8s" / "secrets.example.yaml").read_text())
    for one in example:
        assert set(made[one["metadata"]["name"]]["data"]) == set(one["stringData"])
