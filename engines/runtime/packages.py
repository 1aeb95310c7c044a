"""torch stages compiled ahead of time, kept beside a torch folder (AOTInductor).

What torch.compile does at the first batch of each start is done once: a package holds compiled code
and weights, loads in seconds and needs neither diffusers nor transformers. Owns the packages' list;
a package is code, so one that is not listed or differs from its digest is never loaded.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from engines.disk import write_whole
from engines.errors import BackendError, BundleError
from engines.runtime.base import stage_inputs
from engines.spec import ModelSpec, Precision, StageName, sha256_of

PACKAGES_FOLDER = "packages"
LIST_FILE = "packages.json"
COMPILE_AGAIN = "compile again with engines.runtime.torch_cuda.compile_packages"
_EXAMPLE_BATCH = 2  # the tracer would take a batch of one for a constant
# The folders whose weights and configuration each stage holds.
_SOURCES: dict[StageName, tuple[str, ...]] = {
    "text": ("text_encoder", "text_encoder_2"),
    "denoise": ("unet",),
    "encode": ("vae",),
    "decode": ("vae",),
}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PackageKey(_Frozen):
    """Everything that a package depends on; any difference asks for another."""

    stage: StageName
    precision: Precision
    platform: str
    torch_version: str
    source_sha256: str


class PackageRecord(_Frozen):
    """One package beside the list."""

    file: str
    sha256: str
    key: PackageKey


class PackageList(_Frozen):
    """packages.json: what was compiled here, with digests."""

    packages: tuple[PackageRecord, ...] = ()

    @classmethod
    def load(cls, folder: Path) -> PackageList:
        """Read the list; a folder without one has no packages.

        Raises:
            BundleError: the list is damaged.
        """
        path = folder / LIST_FILE
        if not path.is_file():
            return cls()
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise BundleError(f"{path} is damaged: delete it and {COMPILE_AGAIN}") from error

    def save(self, folder: Path) -> None:
        """Write the list whole or not at all.

        Raises:
            BackendError: the disk is full or read-only.
        """
        write_whole(folder / LIST_FILE, (self.model_dump_json(indent=2) + "\n").encode())


def package_key(
    folder: Path, spec: ModelSpec, stage: StageName, precision: Precision, device: torch.device
) -> PackageKey:
    """The key of a stage's package here and now; reads the stage's weights for their digest."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        platform = f"SM{major}{minor}"
    else:
        platform = f"cpu-{torch.backends.cpu.get_cpu_capability()}"
    digest = hashlib.sha256(spec.model_dump_json(exclude={"examples", "description"}).encode())
    for name in _SOURCES[stage]:
        for path in sorted((folder / name).glob("*")):
            digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return PackageKey(
        stage=stage,
        precision=precision,
        platform=platform,
        torch_version=torch.__version__,
        source_sha256=digest.hexdigest(),
    )


def write_package(
    folder: Path, spec: ModelSpec, key: PackageKey, module: nn.Module, device: torch.device
) -> PackageRecord:
    """Compile a stage for any batch size and list it; one that is listed and whole is kept.

    Raises:
        BackendError: torch cannot trace or compile it, or the disk refuses.
    """
    packages = folder / PACKAGES_FOLDER
    listed = PackageList.load(packages)
    for record in listed.packages:
        path = packages / record.file
        if record.key == key and path.is_file() and sha256_of(path) == record.sha256:
            return record
    path = packages / f"{key.stage}-{key.platform}-{key.precision}.pt2"
    partial = packages / f".{os.getpid()}.{path.name}"
    inputs = _example_inputs(spec, key.stage, device)
    try:
        packages.mkdir(exist_ok=True)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the compiler's own internals
            program = torch.export.export(module, inputs, dynamic_shapes=_axes(spec, key.stage))
            torch._inductor.aoti_compile_and_package(program, package_path=str(partial))
        partial.replace(path)
    except Exception as error:  # torch raises whatever the failing pass raises
        reason = str(error).strip().partition("\n")[0]
        raise BackendError(f"torch cannot compile the {key.stage} stage: {reason}") from error
    finally:
        partial.unlink(missing_ok=True)
    record = PackageRecord(file=path.name, sha256=sha256_of(path), key=key)
    kept = tuple(other for other in listed.packages if other.file != record.file)
    PackageList(packages=(*kept, record)).save(packages)
    return record


def load_package(folder: Path, key: PackageKey, device: torch.device) -> Callable[..., Any]:
    """The compiled stage of this very key.

    Raises:
        BackendError: none is listed, or torch refuses it.
        BundleError: the list or the file is damaged.
    """
    packages = folder / PACKAGES_FOLDER
    for record in PackageList.load(packages).packages:
        if record.key == key:
            break
    else:
        raise BackendError(
            f"{packages} lists no {key.precision} package of the {key.stage} stage for "
            f"{key.platform}, torch {key.torch_version} and these weights: {COMPILE_AGAIN}"
        )
    path = packages / record.file
    if not path.is_file() or sha256_of(path) != record.sha256:
        raise BundleError(
            f"{path} is missing or damaged (sha256 differs from its list): {COMPILE_AGAIN}"
        )
    try:
        # Its own locks would wait for the device, which a capture forbids; the runner has one.
        loaded: Callable[..., Any] = torch._inductor.aoti_load_package(
            str(path), run_single_threaded=True, device_index=device.index or -1
        )
    except Exception as error:  # torch raises whatever the loader raises
        reason = str(error).strip().partition("\n")[0]
        raise BackendError(f"torch cannot load {path} ({reason}): {COMPILE_AGAIN}") from error
    # Compiled for the order of its examples, and unchecked: the loop gives slices.
    return lambda *inputs: loaded(*(tensor.contiguous() for tensor in inputs))


def _example_inputs(
    spec: ModelSpec, stage: StageName, device: torch.device
) -> tuple[torch.Tensor, ...]:
    channels, high, wide = spec.latent_shape(*spec.sizes_px[0])
    width_px, height_px = spec.sizes_px[0]
    axes = {
        "B": _EXAMPLE_BATCH,
        "L": spec.text.max_tokens,
        "D": spec.text.width,
        "P": spec.text.pooled_width or 0,
        "C": 3 if stage == "encode" else channels,
        "H": height_px,
        "W": width_px,
        "h": high,
        "w": wide,
    }
    dtypes = {"input_ids_BL": torch.int64, "timestep_B": torch.int64, "images_BHWC": torch.uint8}
    return tuple(
        torch.zeros(
            [axes[letter] for letter in name.rpartition("_")[2]],
            dtype=dtypes.get(name, torch.float32),
            device=device,
        )
        for name in stage_inputs(spec, stage)
    )


def _axes(spec: ModelSpec, stage: StageName) -> tuple[dict[int, Any], ...]:
    """The free axes of each input: the batch, and the size where the model draws several."""
    free = "B" if len(set(spec.sizes_px)) == 1 else "BhwHW"
    return tuple(
        {
            axis: torch.export.Dim.DYNAMIC
            for axis, letter in enumerate(name.rpartition("_")[2])
            if letter in free
        }
        for name in stage_inputs(spec, stage)
    )
