"""A bundle on disk: whole or not at all.

Owns which graphs a bundle gets, in which precisions, and how the folder appears. How a graph is
traced and stored is its neighbours' affair.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engines.adopt import Overrides, adopt, autoencoder_folder, write_tokenizer
from engines.errors import ExportError
from engines.export.storing import store
from engines.export.tracing import trace
from engines.runtime.modules import Lora, ModuleOptions, load_stage, stage_precision
from engines.spec import (
    ALL_STAGES,
    SPEC_FILE,
    ModelSpec,
    Precision,
    StageFile,
    StageName,
    sha256_of,
)

_COPIED = ("README.md", "grid.webp", "training.json", "evaluation.json", "provenance.json")
_TOKENIZER_FILE = "tokenizer.json"
Report = Callable[[str], None]
Graphs = dict[StageName, StageFile]


@dataclass(frozen=True)
class ExportOptions:
    """What becomes of a torch folder.

    Attributes:
        precisions: float32, float16 or bfloat16; the first is the bundle's base, the others
            become variants.
        name: None keeps the model's.
        sizes_px: width and height of pictures; empty keeps the model's.
        timesteps: that the student was trained for, descending; empty keeps the model's.
        vae: "full" for the model's own autoencoder, "tiny" for its vae_tiny/, or a folder.
        loras: adapters to add to the weights.
        is_img2img: also write the graph that turns pictures into latents.
        has_external_weights: weights in files of their own; large ones are anyway.
    """

    precisions: tuple[Precision, ...] = ("float32",)
    name: str | None = None
    sizes_px: tuple[tuple[int, int], ...] = ()
    timesteps: tuple[int, ...] = ()
    vae: str = "full"
    loras: tuple[Lora, ...] = ()
    is_img2img: bool = False
    has_external_weights: bool = False


def export_bundle(
    source: Path,
    bundle: Path,
    options: ExportOptions | None = None,
    *,
    report: Report = lambda line: None,
) -> ModelSpec:
    """Write `bundle` from the torch folder `source` and return its spec.

    Args:
        source: tokenizer, text_encoder, unet, vae, and model.json or what diffusers writes; the
            model card, its grid and the records of training and evaluation go along.
        bundle: folder to write; an older bundle there is replaced once the new one is whole.
        options: None exports the model as it is, in float32.
        report: called with a line of progress before each long part.

    Raises:
        BundleError: model.json is missing or damaged.
        ExportError: a part cannot be loaded or traced, or `bundle` is some other folder.
    """
    source, bundle, options = Path(source), Path(bundle), options or ExportOptions()
    if len(set(options.precisions)) != len(options.precisions) or not options.precisions:
        raise ExportError("--precision: name each one once")
    vae = autoencoder_folder(source, options.vae)
    spec = adopt(source, Overrides(options.name, options.sizes_px, options.timesteps, vae))
    _refuse_foreign(source, bundle)
    partial = bundle.parent / f".{bundle.name}.{os.getpid()}.partial"
    try:
        partial.mkdir(parents=True)
        write_tokenizer(source, spec, partial / _TOKENIZER_FILE)
        graphs: dict[Precision, Graphs] = {}
        for precision in options.precisions:
            parts = ModuleOptions(precision, vae, options.loras)
            graphs[precision] = _write_graphs(source, partial, spec, parts, options, report)
        written = _with_files(spec, partial, source, graphs)
        written.save(partial)
        _replace_folder(partial, bundle)
    except OSError as error:
        raise ExportError(f"cannot write {bundle}: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return written


def _write_graphs(
    source: Path,
    partial: Path,
    spec: ModelSpec,
    parts: ModuleOptions,
    options: ExportOptions,
    report: Report,
) -> Graphs:
    is_base = parts.precision == options.precisions[0]
    graphs: Graphs = {}
    for stage in ALL_STAGES:
        if stage == "encode" and not options.is_img2img:
            continue
        computed = stage_precision(source, spec, stage, parts)
        if computed != parts.precision:
            report(f"{stage}: its autoencoder overflows in {parts.precision}, it stays {computed}")
            if not is_base and computed == options.precisions[0]:
                continue  # the base's graph is that very one
        report(f"tracing the {stage} stage in {computed}")
        model = trace(load_stage(source, spec, stage, parts), stage, spec)
        name = f"{stage}.onnx" if is_base else f"{stage}.{parts.precision}.onnx"
        graphs[stage] = store(
            model,
            partial / name,
            in_half=computed == "float32",
            has_external_weights=options.has_external_weights,
        )
    return graphs


def _with_files(
    spec: ModelSpec, partial: Path, source: Path, graphs: dict[Precision, Graphs]
) -> ModelSpec:
    """The spec with what was written, and the records that go along copied."""
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, partial / name)
    base, *others = graphs
    update = {
        "base_precision": base,
        "stages": graphs[base],
        "variants": {precision: graphs[precision] for precision in others},
        "files": {_TOKENIZER_FILE: sha256_of(partial / _TOKENIZER_FILE)},
        "tokenizer_file": _TOKENIZER_FILE,
    }
    return spec.model_copy(update=update)


def _refuse_foreign(source: Path, bundle: Path) -> None:
    if bundle.resolve() == source.resolve():
        raise ExportError(f"{bundle} is the torch folder itself: give another --out")
    is_foreign = bundle.is_file() or (
        bundle.is_dir() and any(bundle.iterdir()) and not (bundle / SPEC_FILE).is_file()
    )
    if is_foreign:
        raise ExportError(f"{bundle} exists and is no bundle: give an empty or new --out")


def _replace_folder(partial: Path, bundle: Path) -> None:
    """Put `partial` where `bundle` is; a reader sees the old one, for an instant none, the new."""
    if not bundle.exists():
        partial.rename(bundle)
        return
    old = bundle.parent / f".{bundle.name}.{os.getpid()}.old"
    bundle.rename(old)
    try:
        partial.rename(bundle)
    except OSError:
        old.rename(bundle)
        raise
    shutil.rmtree(old, ignore_errors=True)
