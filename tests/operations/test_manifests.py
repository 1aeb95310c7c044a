"""The Kubernetes manifests: rendered, held against schemas, asked by every check, and mutated."""

from __future__ import annotations

import json
import subprocess
import sys

import jsonschema
import kubernetes_validate
import pytest
import yaml
from manifests import availability, confinement, references, traffic, watching
from manifests.mistakes_between import BETWEEN
from manifests.mistakes_watching import WATCHING
from manifests.mistakes_within import WITHIN
from manifests.mutations import Mutation
from manifests.objects import CHECKS, OVERLAYS, ROOT, Object, name_of, of_kind, render

# The modules whose checks are asked; importing them is what registers these.
assert all((confinement, references, availability, traffic, watching))

MUTATIONS = (*WITHIN, *BETWEEN, *WATCHING)
KUBERNETES = "1.32"
CRDS = ROOT / "tests" / "manifests" / "crds"
CUSTOM = {path.stem: json.loads(path.read_text()) for path in CRDS.glob("*.json")}


def _validate(one: Object) -> None:
    """Hold an object against its schema, in which no unknown field is allowed."""
    if schema := CUSTOM.get(one["kind"]):
        jsonschema.validate(one, schema)
    else:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_valid(overlay: str) -> None:
    objects = render(overlay)
    for one in objects:
        _validate(one)
    # One that rendered to nothing would be valid, too.
    assert of_kind(objects, "Deployment", "Job")


@pytest.mark.parametrize(
    ("overlay", "target", "field", "value"),
    [
        ("cpu", "Deployment/onestep-api", "replicass", 2),
        ("cpu", "Deployment/onestep-worker", "replicas", "two"),
        ("ha", "ScaledObject/onestep-worker", "minReplicas", 2),
        ("ha", "ScaledObject/onestep-worker", "pollingInterval", "5s"),
        ("ha", "ServiceMonitor/onestep-api", "podMetricsEndpoints", []),
        ("ha", "PodMonitor/onestep-worker", "selector", None),
    ],
)
def test_a_misspelt_field_or_a_wrong_type_is_invalid(
    overlay: str, target: str, field: str, value: object
) -> None:
    (one,) = (o for o in render(overlay) if name_of(o) == target)
    one["spec"][field] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        _validate(one)


def test_a_kind_without_a_schema_is_no_silent_pass() -> None:
    (one,) = (o for o in render("ha") if name_of(o) == "PodMonitor/onestep-worker")
    with pytest.raises(kubernetes_validate.SchemaNotFoundError):
        _validate({**one, "kind": "Probe"})


@pytest.mark.parametrize("rule", CHECKS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_passes(overlay: str, rule: str) -> None:
    assert list(CHECKS[rule](render(overlay))) == []


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_mistake_is_found(mutation: Mutation) -> None:
    found = list(CHECKS[mutation.check](mutation.applied()))
    assert found
    # A message is of use only if it says where.
    assert all("/" in line or "namespace" in line or "policy" in line for line in found)


def test_every_check_has_a_mistake_to_find() -> None:
    assert {mutation.check for mutation in MUTATIONS} == set(CHECKS)


def test_the_images_have_the_projects_version(repo_version: str) -> None:
    for overlay in OVERLAYS:
        for one in of_kind(render(overlay), "Deployment", "Job"):
            for container in one["spec"]["template"]["spec"]["containers"]:
                assert container["image"].endswith(f":{repo_version}"), name_of(one)


def test_the_training_starts_as_its_command_line_would() -> None:
    """torchrun's own options are checked by torchrun; what follows `-m` by the command."""
    (job,) = of_kind(render("distill"), "Job")
    args = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[0] == "torchrun"
    nodes = {arg for arg in args if arg.startswith("--nnodes=")}
    assert nodes == {f"--nnodes={job['spec']['completions']}"}
    command = args[args.index("-m") + 1 :]
    assert command[:2] == ["distill", "train"]
    asked = subprocess.run(
        [sys.executable, "-m", *command, "--no-preflight", "--bad-option"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    # Only the option that was added is unknown.
    assert "unrecognized arguments: --bad-option\n" in asked.stderr


def test_the_example_of_secrets_is_valid_and_holds_none() -> None:
    for one in yaml.safe_load_all((ROOT / "k8s" / "secrets.example.yaml").read_text()):
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
        for value in one["stringData"].values():
            assert "REPLACE" in value or '"keys": []' in value
