"""The page's files: typed, cached, fenced in, and nothing else reachable."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from fastapi import FastAPI, Response
from fastapi.testclient import TestClient

from service.errors import NotFound
from service.routes.playground import ASSETS, router


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = FastAPI()
    app.include_router(router)
    app.add_exception_handler(NotFound, lambda request, error: Response(status_code=404))
    with TestClient(app) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/playground/index.html", "text/html; charset=utf-8"),
        ("/playground/style.css", "text/css; charset=utf-8"),
        ("/playground/app.js", "text/javascript; charset=utf-8"),
        ("/playground/icon.svg", "image/svg+xml"),
    ],
)
def test_a_file_comes_with_its_type_and_its_fence(
    client: TestClient, path: str, media_type: str
) -> None:
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == media_type
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-cache"
    policy = dict(
        rule.split(" ", 1) for rule in response.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert response.headers["permissions-policy"].split(", ")[:2] == [
        "camera=(self)",
        "microphone=()",
    ]


@pytest.mark.parametrize("form", ["{tag}", "W/{tag}", '"other", {tag}', "*"])
def test_a_known_file_is_not_sent_again(client: TestClient, form: str) -> None:
    tag = client.get("/").headers["etag"]
    again = client.get("/", headers={"if-none-match": form.format(tag=tag)})
    assert again.status_code == 304
    assert again.content == b""
    assert again.headers["etag"] == tag


def test_a_changed_file_is_sent_again(client: TestClient) -> None:
    assert client.get("/", headers={"if-none-match": '"of an older release"'}).status_code == 200


def test_head_tells_the_length_without_the_body(client: TestClient) -> None:
    response = client.head("/")
    assert response.content == b""
    assert int(response.headers["content-length"]) == len(ASSETS["index.html"].content)


@pytest.mark.parametrize("name", ["missing.js", "..%2Fapp.py", "%2e%2e%2fsettings.py", ".hidden"])
def test_no_other_file_can_be_reached(client: TestClient, name: str) -> None:
    assert client.get(f"/playground/{name}").status_code == 404


def test_the_page_names_only_files_that_exist_and_nothing_inline() -> None:
    html = ASSETS["index.html"].content.decode()
    named = re.findall(r'(?:src|href)="([^"#]+)"', html)
    scripts = "".join(
        asset.content.decode() for name, asset in ASSETS.items() if name.endswith(".js")
    )
    named += re.findall(r'from "([^"]+)"', scripts)
    assert len(named) >= 5
    assert {path.removeprefix("/playground/") for path in named} <= set(ASSETS)
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", html)
    assert "innerHTML" not in scripts


def test_the_page_is_small() -> None:
    assert sum(len(asset.content) for asset in ASSETS.values()) < 100_000
