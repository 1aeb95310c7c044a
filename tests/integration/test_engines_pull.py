"""Fetching a model: from a folder, from a hub that answers, and from one that does not."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from engines_fixtures import alter_settings, write_tiny_vae
from safetensors.torch import load_file, save_file
from teacher_folders import save_tiny_pipeline

from engines.__main__ import main
from engines.adopt import Wanted, adopt, pull
from engines.errors import BundleError, ExportError
from engines.spec import ModelSpec

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository as they lie on the hub: both precisions, and much that nobody needs here."""
    folder = save_tiny_pipeline("sd15", tmp_path_factory.mktemp("hub") / "acme" / "tiny-turbo")
    for part in ("unet", "text_encoder", "vae"):
        (path,) = (folder / part).glob("*.safetensors")
        halved = {name: value.half() for name, value in load_file(path).items()}
        save_file(halved, path.with_suffix(".fp16.safetensors"), {"format": "pt"})
        path.with_suffix(".bin").write_bytes(b"a pickle")
    (folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"x")
    (folder / "whole.safetensors").write_bytes(b"x")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    whole = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(whole["vocab"]))
    merges = "\n".join(" ".join(merge) for merge in whole["merges"])
    (folder / "tokenizer" / "merges.txt").write_text(f"#version: 0.2\n{merges}")
    write_tiny_vae(folder.parent / "tiny-vae")
    return folder


def _names(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


WEIGHTS = {
    "unet/diffusion_pytorch_model",
    "vae/diffusion_pytorch_model",
    "text_encoder/model",
}
SMALL = {
    *("model.json", "model_index.json", "README.md", "scheduler/scheduler_config.json"),
    *("tokenizer/merges.txt", "tokenizer/vocab.json", "tokenizer/tokenizer.json"),
    *("tokenizer/tokenizer_config.json",),
    *("unet/config.json", "vae/config.json", "text_encoder/config.json"),
}


@pytest.mark.parametrize("is_half", [False, True])
def test_a_folder_gives_what_the_stages_read_and_nothing_else(
    model: Path, tmp_path: Path, is_half: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    tiny = str(model.parent / "tiny-vae")
    options = ["--out", str(out), "--tiny-vae", tiny, *(["--half"] if is_half else [])]
    assert main(["pull", str(model), *options]) == 0
    assert f"onestep-engines export {out} --out BUNDLE" in capsys.readouterr().out
    kind = ".fp16.safetensors" if is_half else ".safetensors"
    tiny_files = {"vae_tiny/config.json", "vae_tiny/diffusion_pytorch_model.safetensors"}
    assert _names(out) == SMALL | {f"{name}{kind}" for name in WEIGHTS} | tiny_files
    spec = ModelSpec.load(out)
    assert (spec.name, spec.license) == ("tiny-turbo", "mit")
    assert adopt(out) == spec
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(BundleError, match=f"{out} exists: give a new or empty --out"):
        pull(Wanted(str(model)), out)


def test_a_model_without_half_files_says_so(model: Path, tmp_path: Path) -> None:
    source = save_tiny_pipeline("sd21", tmp_path / "source")
    with pytest.raises(ExportError, match="no such safetensors in unet: leave --half out"):
        pull(Wanted(str(source), is_half=True), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_small_autoencoder_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    other = str(write_tiny_vae(tmp_path / "other", channels=8))
    with pytest.raises(ExportError, match="gives 8 channels and the UNet takes 4"):
        pull(Wanted(str(model), tiny_vae=other), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def hub(model: Path) -> Iterator[tuple[str, list[str]]]:
    """A hub with two models, that notes which files were asked for."""
    asked: list[str] = []
    root = model.parent.parent

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/api/models/"):
                folder = root.joinpath(*path.split("/")[3:5])
                if not folder.is_dir():
                    return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
                files = {name: (folder / name).read_bytes() for name in sorted(_names(folder))}
                if "/tree/" in path:
                    entries = [
                        {
                            "type": "file",
                            "path": name,
                            "size": len(raw),
                            "oid": _digest(raw),
                        }
                        for name, raw in files.items()
                    ]
                    return self._send(200, json.dumps(entries).encode(), {})
                name = "/".join(path.split("/")[3:5])
                siblings = [{"rfilename": name} for name in files]
                body = {"id": name, "sha": _COMMIT, "siblings": siblings}
                return self._send(200, json.dumps(body).encode(), {})
            organisation, name, _, _, *rest = path.strip("/").split("/")
            content = root.joinpath(organisation, name, *rest).read_bytes()
            if self.command == "GET":
                asked.append("/".join(rest))
            headers = {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": _COMMIT}
            return self._send(200, content, headers)

        def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hub_is_asked_for_settings_first_and_only_for_what_is_read(
    hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    endpoint, asked = hub
    out = tmp_path / "out"
    wanted = Wanted("acme/tiny-turbo", True, "acme/tiny-vae", endpoint)
    spec = pull(wanted, out)
    assert spec.name == "tiny-turbo"
    tiny_files = {"vae_tiny/config.json", "vae_tiny/diffusion_pytorch_model.safetensors"}
    assert _names(out) == SMALL | {f"{name}.fp16.safetensors" for name in WEIGHTS} | tiny_files
    weights = [index for index, name in enumerate(asked) if name.endswith(".safetensors")]
    assert min(weights) > asked.index("unet/config.json")
    assert not {name for name in asked if name.endswith((".bin", "non_ema.safetensors"))}


def test_a_model_that_is_refused_costs_no_weights(
    hub: tuple[str, list[str]], model: Path, tmp_path: Path
) -> None:
    endpoint, asked = hub
    other = save_tiny_pipeline("sd21", model.parent / "inpainting")
    alter_settings(other / "unet" / "config.json", in_channels=9)
    with pytest.raises(ExportError, match="takes 9 channels and gives 4"):
        pull(Wanted("acme/inpainting", endpoint=endpoint), tmp_path / "out")
    assert asked and not [name for name in asked if name.endswith(".safetensors")]


@pytest.mark.parametrize("name", ["acme/nothing", "a/b/c", "nowhere"])
def test_a_name_that_leads_nowhere_is_one_line(
    hub: tuple[str, list[str]], name: str, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=f"cannot fetch {name}|no folder {name}") as caught:
        pull(Wanted(name, endpoint=hub[0]), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_hub_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    wanted = Wanted("acme/tiny-turbo", endpoint="http://127.0.0.1:9")
    with pytest.raises(BundleError, match=r"cannot fetch acme/tiny-turbo .*network") as caught:
        pull(wanted, tmp_path / "out")
    assert "\n" not in str(caught.value)
