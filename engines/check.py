"""Does a configuration of a bundle draw what the reference draws?

Owns which configurations are compared and with what: the torch folder that the bundle was exported
from, or else the bundle's float32 graphs under ONNX Runtime. Verdicts go into the bundle's
check.json, which loading obeys. How two sides are compared is in `engines.parity`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from engines.errors import BackendError, BadPictureError, ParityError
from engines.parity import TOLERANCES, Reference, compare, compare_stages, excesses, reference_of
from engines.pipeline import Pipeline
from engines.runtime.base import RuntimeOptions, Stages
from engines.runtime.registry import BACKENDS, is_installed, load_stages
from engines.spec import Configuration, ModelSpec, Precision
from engines.tokenizer import Tokenizer
from engines.verdicts import (
    PictureFigures,
    Verdict,
    Verdicts,
    fingerprint,
    package_versions,
)

Report = Callable[[str], None]


def configurations(
    spec: ModelSpec, backends: Sequence[str] = (), precisions: Sequence[Precision] = ()
) -> list[Configuration]:
    """Every installed backend that reads bundles, with every precision that there is."""
    # The torch backends read the torch folder, with which the others are compared.
    readers = [b for b in BACKENDS if not b.startswith("torch") and is_installed(b)]
    return [
        Configuration(backend=backend, precision=precision)
        for backend in backends or readers
        for precision in precisions or spec.precisions
    ]


def check_bundle(
    bundle: Path,
    chosen: Sequence[Configuration],
    *,
    source: Path | None = None,
    num_threads: int | None = None,
    report: Report = lambda line: None,
) -> list[Verdict]:
    """Compare configurations with the reference and write the verdicts into `bundle`.

    One that cannot be loaded here is reported and left out, unless it is the only one.

    Raises:
        BundleError: a folder is missing or damaged.
        BackendError: the reference cannot run, or nothing could be loaded.
        ExportError: the torch folder cannot be read.
        ParityError: the torch folder is of another model.
    """
    spec = ModelSpec.load(bundle)
    spec.verify(bundle)
    tokenizer = Tokenizer.load(bundle, spec)
    reference = _reference(bundle, spec, source, num_threads)
    known = Verdicts.load(bundle)
    done: list[Verdict] = []
    for one in chosen:
        try:
            options = RuntimeOptions(one.precision, num_threads)
            stages = load_stages(one.backend, bundle, spec, options)
        except BackendError as error:
            if len(chosen) == 1:
                raise
            report(f"{one.backend} {one.precision}: left out: {error}")
            continue
        verdict = judge(one, spec, (tokenizer, stages), reference)
        done.append(verdict)
        known = known.having(verdict)
        known.save(bundle)
    if not done:
        raise BackendError(f"{bundle}: nothing to check: no backend could be loaded")
    return done


def judge(
    one: Configuration, spec: ModelSpec, parts: tuple[Tokenizer, Stages], reference: Reference
) -> Verdict:
    """Hold one configuration against the reference.

    Raises:
        BackendError: a stage failed.
        ParityError: the reference's pictures are of another size.
    """
    tolerance = TOLERANCES[one.precision]
    stages, failures = compare_stages(spec, parts[1], reference.calls, tolerance)
    pictures: list[PictureFigures] = []
    try:
        pipeline = Pipeline(spec, *parts)
        for figures in compare(pipeline, reference, one.backend):
            pictures.append(figures)
            failures += excesses(figures, tolerance)
    except BadPictureError as error:
        failures.append(str(error))
    return Verdict(
        backend=one.backend,
        precision=one.precision,
        fingerprint=fingerprint(spec, one.precision),
        reference=reference.name,
        packages=package_versions(one.backend),
        stages=stages,
        pictures=tuple(pictures),
        failures=tuple(failures),
    )


def _reference(
    bundle: Path, spec: ModelSpec, source: Path | None, num_threads: int | None
) -> Reference:
    if source is not None:
        own = ModelSpec.load(source)
        stages = load_stages("torch", source, own, RuntimeOptions(num_threads=num_threads))
        parts = (own, Tokenizer.load(source, own), stages)
        if (own.sizes_px[0], own.max_steps) != (spec.sizes_px[0], spec.max_steps):
            raise ParityError(f"{bundle} was exported from another torch folder than {source}")
        return reference_of(parts, "torch float32")
    if "float32" not in spec.precisions:
        raise BackendError(f"{spec.name} has no float32 graphs to compare with: give --torch")
    stages = load_stages("onnx", bundle, spec, RuntimeOptions("float32", num_threads))
    return reference_of((spec, Tokenizer.load(bundle, spec), stages), "onnx float32")
