"""A model of the Hugging Face hub, fetched into a folder.

Owns which files are needed and that a folder appears only when all of them are there. Loads
nothing of what it fetches but settings: weights are taken as safetensors alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub

from engines.adopt.folder import INDEX_FILE, TINY_VAE_FOLDER, Overrides, adopt
from engines.adopt.settings import read_settings
from engines.adopt.tokens import write_tokenizer
from engines.errors import BundleError, ExportError
from engines.spec import SPEC_FILE, ModelSpec

TINY_VAES = {False: "madebyollin/taesd", True: "madebyollin/taesdxl"}
_WEIGHTED = ("unet", "vae", "text_encoder", "text_encoder_2")
_SMALL = (
    *("model_index.json", SPEC_FILE, "README.md", "LICENSE*", "scheduler/*.json"),
    *("tokenizer/*.json", "tokenizer/*.txt", "tokenizer_2/*.json", "tokenizer_2/*.txt"),
    *(f"{part}/config.json" for part in _WEIGHTED),
)
# Weights that no stage reads, in the same folders.
_IGNORED = ("*non_ema*", "*/openvino*", "*.bin", "*.msgpack", "*.onnx*")
Report = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What to fetch.

    Attributes:
        name: `organisation/name`, with `@revision` if wanted; or a local folder, to copy from.
        is_half: the files stored in float16 (variant fp16), half as large.
        tiny_vae: also a small autoencoder, by name or folder; "auto" takes the one that belongs to
            the kind of model.
        endpoint: another hub than the public one.
    """

    name: str
    is_half: bool = False
    tiny_vae: str | None = None
    endpoint: str | None = None


def pull(wanted: Wanted, out: Path, *, report: Report = lambda line: None) -> ModelSpec:
    """Fetch a model into `out` and say what it is; a fetch that was cut short goes on.

    Raises:
        BundleError: the hub cannot be reached or has no such model, or `out` holds something else.
        ExportError: what was fetched is no model that is known here, or lacks weights.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out} exists: give a new or empty --out")
    partial = out.parent / f".{out.name}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    report(f"fetching {wanted.name}")
    _fetch(wanted, wanted.name, partial, _SMALL)
    # A model that is refused is refused before its gigabytes are fetched.
    spec = adopt(partial, Overrides(name=wanted.name.partition("@")[0].rpartition("/")[2]))
    report(f"{spec.description or spec.name}: fetching its weights")
    _fetch(wanted, wanted.name, partial, _weight_patterns(wanted.is_half))
    _require_weights(partial, wanted)
    if wanted.tiny_vae is not None:
        name = wanted.tiny_vae
        if name == "auto":
            name = TINY_VAES[spec.text.pooled_width is not None]
        report(f"fetching {name}")
        tiny = partial / TINY_VAE_FOLDER
        _fetch(wanted, name, tiny, ("config.json", "*.safetensors"))
        adopt(partial, Overrides(vae=tiny))  # refuses one of another model
    if not (partial / SPEC_FILE).is_file():
        spec.save(partial)
    tokenizer = partial / "tokenizer" / spec.tokenizer_file
    if not tokenizer.is_file():
        write_tokenizer(partial, spec, tokenizer)
    for folder in (partial, partial / TINY_VAE_FOLDER):
        shutil.rmtree(folder / ".cache", ignore_errors=True)
    if out.exists():
        out.rmdir()
    partial.rename(out)
    return spec


def _weight_patterns(is_half: bool) -> tuple[str, ...]:
    kind = ".fp16" if is_half else ""
    return tuple(
        f"{part}/{pattern}"
        for part in _WEIGHTED
        for pattern in (f"*{kind}*.safetensors", f"*.safetensors.index{kind}.json")
    )


def _fetch(wanted: Wanted, name: str, out: Path, patterns: tuple[str, ...]) -> None:
    ignored = (*_IGNORED, *(() if wanted.is_half else ("*.fp16*",)))
    source = Path(name)
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            relative = path.relative_to(source).as_posix()
            is_wanted = any(fnmatch(relative, pattern) for pattern in patterns)
            if path.is_file() and is_wanted and not any(fnmatch(relative, p) for p in ignored):
                (out / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, out / relative)
        return
    repository, _, revision = name.partition("@")
    if repository.count("/") != 1 or repository.startswith((".", "/")):
        raise BundleError(f"no folder {name}; a hub name has the form organisation/name[@revision]")
    try:
        huggingface_hub.snapshot_download(
            repository,
            revision=revision or None,
            local_dir=out,
            allow_patterns=list(patterns),
            ignore_patterns=list(ignored),
            endpoint=wanted.endpoint,
        )
    except Exception as error:  # the hub's client and its transport share no base class
        reason = str(error).strip().partition("\n")[0]
        raise BundleError(
            f"cannot fetch {name} from the hub ({reason}): check name and network, or fetch it "
            "elsewhere and give its folder"
        ) from error


def _require_weights(folder: Path, wanted: Wanted) -> None:
    index = read_settings(folder / INDEX_FILE) if (folder / INDEX_FILE).is_file() else {}
    for part in _WEIGHTED:
        is_part = bool(index.get(part)) or (not index and (folder / part).is_dir())
        if is_part and not any((folder / part).glob("*.safetensors")):
            remedy = "leave --half out" if wanted.is_half else "ask for another revision"
            raise ExportError(f"{wanted.name} has no such safetensors in {part}: {remedy}")
