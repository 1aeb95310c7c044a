"""A start that cannot succeed: one clear line that names the file and the remedy, and status 2."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from service_process import running_service, service_environment

from engines.errors import BundleError
from engines.spec import STAGES, ModelSpec
from engines.verdicts import Verdict, Verdicts, fingerprint, package_versions
from service.processes.models import load_limits


def _fails_to_start(*arguments: str, **settings: object) -> str:
    """The one line that the command leaves when it cannot start."""
    ran = subprocess.run(
        [sys.executable, "-m", "service", "serve", "--port", "0", *arguments],
        env=service_environment(**settings),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("onestep: ") and ran.stderr.count("\n") == 1, ran.stderr
    return ran.stderr


def test_a_missing_bundle_is_named(tmp_path: Path) -> None:
    line = _fails_to_start("--model", str(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere" / "model.json") in line
    assert "onestep-engines export" in line


@pytest.fixture
def own_bundle(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may damage."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def test_a_damaged_bundle_is_named(own_bundle: Path) -> None:
    graph = own_bundle / "denoise.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    line = _fails_to_start("--model", str(own_bundle))
    assert str(graph) in line
    assert "export or fetch the bundle again" in line


FILES = ("model.json", "tokenizer.json", *(f"{stage}.onnx" for stage in STAGES))


# A changed letter in model.json may be a meant one: the digests cover every other file.
@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, damage) for name in FILES for damage in ("missing", "cut")]
    + [(name, "changed") for name in FILES[1:]],
)
def test_no_damage_goes_unnoticed(own_bundle: Path, name: str, damage: str) -> None:
    path = own_bundle / name
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:middle])
    else:
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(BundleError, match=re.escape(str(path))) as caught:
        load_limits(own_bundle)
    assert "export" in str(caught.value) and "\n" not in str(caught.value)


def test_a_bundle_that_failed_its_check_is_served_only_where_that_is_allowed(
    own_bundle: Path, tmp_path: Path
) -> None:
    spec = ModelSpec.load(own_bundle)
    verdict = Verdict(
        backend="onnx",
        precision="float32",
        fingerprint=fingerprint(spec, "float32"),
        reference="torch float32",
        packages=package_versions("onnx"),
        stages={},
        pictures=(),
        failures=("steps 1: mean 9.000, allowed 1",),
    )
    Verdicts(verdicts=(verdict,)).save(own_bundle)
    line = _fails_to_start("--model", str(own_bundle))
    assert f"{own_bundle}: onnx float32 failed its check (steps 1: mean 9.000" in line
    with running_service(own_bundle, tmp_path, allow_failed_check=True) as service:
        assert httpx.get(f"{service.url}/readyz").status_code == 200


def test_a_taken_port_is_named(bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = _fails_to_start("--model", str(bundle), "--port", port)
    assert f"port {port}" in line and "--port" in line


def test_a_wrong_setting_is_named(bundle: Path) -> None:
    line = _fails_to_start("--model", str(bundle), max_batch_size=0)
    assert "ONESTEP_MAX_BATCH_SIZE" in line


def test_a_keys_file_that_cannot_be_used_is_named(bundle: Path, tmp_path: Path) -> None:
    """Serving without keys, because the file could not be read, would open the service to all."""
    path = tmp_path / "keys.json"
    line = _fails_to_start("--model", str(bundle), keys_file=path)
    assert str(path) in line and "onestep keys add" in line
    path.write_text('{"version": 1, "keys": [{"id": "abc"}]}')
    line = _fails_to_start("--model", str(bundle), keys_file=path)
    assert f"{path}: the keys file is damaged (keys.0.id" in line


def test_a_taken_port_of_the_operators_is_named(bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = _fails_to_start("--model", str(bundle), admin_port=port)
    assert f"port {port}" in line and "ONESTEP_ADMIN_PORT" in line


@pytest.mark.parametrize("origins", ["app.example", "https://app.example/", "ftp://a", "https://"])
def test_what_is_no_origin_is_named(bundle: Path, origins: str) -> None:
    assert "ONESTEP_CORS_ORIGINS" in _fails_to_start("--model", str(bundle), cors_origins=origins)


def test_an_unknown_backend_is_named(bundle: Path) -> None:
    assert "magic" in _fails_to_start("--model", str(bundle), backend="magic")
