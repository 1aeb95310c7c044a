"""One process serves several models: requests name one, and the first is the default."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from service_process import ServiceProcess, running_service


@pytest.fixture(scope="module")
def service(
    bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServiceProcess, str]]:
    folder = tmp_path_factory.mktemp("models")
    second = Path(shutil.copytree(bundle, folder / "second"))
    spec = json.loads((second / "model.json").read_text())
    first_name = spec["name"]
    # It starts elsewhere, so it draws other pictures.
    timesteps = spec["student_timesteps"] | {"1": [500]}
    spec |= {"name": "second", "student_timesteps": timesteps}
    (second / "model.json").write_text(json.dumps(spec))
    with running_service(bundle, folder, extra_arguments=("--model", str(second))) as service:
        yield service, first_name


def _draw(url: str, **fields: object) -> httpx.Response:
    headers = {"accept": "image/png"}
    body = {"prompt": "heart", "seed": 1} | fields
    return httpx.post(f"{url}/v1/generate", json=body, headers=headers, timeout=30)


def test_each_model_draws_under_its_name(service: tuple[ServiceProcess, str]) -> None:
    process, first_name = service
    by_default, first, second = (
        _draw(process.url),
        _draw(process.url, model=first_name),
        _draw(process.url, model="second"),
    )
    assert {answer.status_code for answer in (by_default, first, second)} == {200}
    assert by_default.content == first.content != second.content


def test_models_are_listed_and_an_unknown_one_is_refused(
    service: tuple[ServiceProcess, str],
) -> None:
    process, first_name = service
    listed = httpx.get(f"{process.url}/v1/models").json()["data"]
    assert [model["id"] for model in listed] == [first_name, "second"]
    assert httpx.get(f"{process.url}/v1/models/second").json()["id"] == "second"
    refused = _draw(process.url, model="third")
    assert refused.status_code == 400
    assert (refused.json()["field"], refused.json()["allowed"]) == (
        "model",
        [first_name, "second"],
    )
