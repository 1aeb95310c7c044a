"""Arguments and printed lines of `export` and `pull`.

Owns what is said on the command line of a model that is to become a bundle.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from engines.commands.shared import import_framework, report

_PRECISIONS = ("float32", "float16", "bfloat16")


def add_pull(commands: Any) -> None:
    """Add the command `pull`."""
    pull = commands.add_parser("pull", help="fetch a model from the Hugging Face hub")
    pull.add_argument("name", help="organisation/name[@revision], or a folder to copy from")
    pull.add_argument("--out", type=Path, required=True, help="folder to write")
    pull.add_argument("--half", action="store_true", help="the float16 files, half as large")
    pull.add_argument(
        "--tiny-vae",
        nargs="?",
        const="auto",
        metavar="NAME",
        help="fetch a small autoencoder too, for `export --vae tiny` (default: the kind's own)",
    )
    pull.set_defaults(run=_pull)


def add_export(commands: Any) -> None:
    """Add the command `export`."""
    export = commands.add_parser("export", help="write a bundle from a torch folder")
    export.add_argument(
        "source", type=Path, help="folder of `onestep-distill export`, of `pull` or of diffusers"
    )
    export.add_argument("--out", type=Path, required=True, help="bundle folder to write")
    export.add_argument(
        "--precision",
        action="append",
        choices=_PRECISIONS,
        help="what the graphs compute in; repeat it for variants (default: float32)",
    )
    export.add_argument("--vae", default="full", help="full, tiny, or an autoencoder's folder")
    export.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:SCALE]",
        help="an adapter's file or folder, added to the weights; repeat it for several",
    )
    export.add_argument("--img2img", action="store_true", help="also draw from pictures")
    export.add_argument(
        "--size",
        action="append",
        type=_size,
        default=[],
        metavar="WxH",
        help="of pictures; repeat it for several (default: the model's own)",
    )
    export.add_argument(
        "--timesteps",
        type=_timesteps,
        default=(),
        metavar="T,T,...",
        help="that the student was trained for, descending (default: 999,749,499,249)",
    )
    export.add_argument("--name", help="of the model (default: its own)")
    export.add_argument(
        "--external-data",
        action="store_true",
        help="weights in files of their own, as weights above 1.5 GB are anyway",
    )
    export.set_defaults(run=_export)


def _pull(options: argparse.Namespace) -> int:
    module = import_framework("engines.adopt")
    wanted = module.Wanted(options.name, is_half=options.half, tiny_vae=options.tiny_vae)
    spec = module.pull(wanted, options.out, report=report)
    width, height = spec.sizes_px[0]
    print(
        f"{options.out}: {spec.name} ({spec.description}), {width}x{height}, "
        f"1 to {spec.max_steps} steps; next: onestep-engines export {options.out} --out BUNDLE"
    )
    return 0


def _export(options: argparse.Namespace) -> int:
    module = import_framework("engines.export")
    lora = import_framework("engines.runtime.modules").Lora
    wanted = module.ExportOptions(
        precisions=tuple(options.precision or ["float32"]),
        name=options.name,
        sizes_px=tuple(options.size),
        timesteps=options.timesteps,
        vae=options.vae,
        loras=tuple(lora.parse(text) for text in options.lora),
        is_img2img=options.img2img,
        has_external_weights=options.external_data,
    )
    spec = module.export_bundle(options.source, options.out, wanted, report=report)
    graphs = [g for precision in (spec.stages, *spec.variants.values()) for g in precision.values()]
    size_bytes = sum(g.size_bytes + (g.weights.size_bytes if g.weights else 0) for g in graphs)
    print(f"{options.out}: {spec.name}, {len(graphs)} graphs, {size_bytes / 1e6:.1f} MB")
    return 0


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT in pixels, got {text!r}")
    return int(found[1]), int(found[2])


def _timesteps(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"must be numbers with commas between, got {text!r}")
    return tuple(int(part) for part in text.split(","))
