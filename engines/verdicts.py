"""check.json: which configurations of a bundle were compared with the reference, and how it went.

Owns the file's form, what a verdict depends on, and the refusal to load what failed. `check`
writes it after the bundle is whole, so model.json lists no digest of it. Knows no framework.
"""

from __future__ import annotations

import hashlib
import json
import logging
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engines.errors import BundleError, ParityError
from engines.spec import CHECK_FILE, Configuration, ModelSpec, Precision, StageName

# What a picture depends on beside the graphs.
_DRAWING_FIELDS = {"schedule", "student_timesteps", "sizes_px", "latent", "text", "prediction_type"}
_PACKAGES = {
    "onnx": ("onnxruntime",),
    "openvino": ("openvino",),
    "torch": ("torch", "diffusers", "transformers"),
}
_log = logging.getLogger("onestep.engines")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StageFigures(_Frozen):
    """How far one stage is from the reference on the same inputs.

    Attributes:
        max_error: largest absolute difference, over the reference's largest absolute value.
        mean_error: mean absolute difference, over the reference's mean absolute value.
    """

    max_error: float
    mean_error: float


class PictureFigures(_Frozen):
    """How far whole pictures are, in levels of 0..255.

    Attributes:
        what: the two sides, in words.
        steps: number of denoise steps.
        batch_size: pictures in the batch.
        max_difference: largest absolute difference.
        mean_difference: mean absolute difference.
        psnr_db: peak signal to noise ratio; None where the pictures are equal.
    """

    what: str
    steps: int
    batch_size: int
    max_difference: int
    mean_difference: float
    psnr_db: float | None


class Verdict(_Frozen):
    """One configuration's comparison with the reference.

    Attributes:
        backend: that was tested.
        precision: of the graphs that were tested.
        fingerprint: of the graphs and of what else a picture depends on.
        reference: the other side, in words.
        packages: name -> version of what ran the graphs.
        stages: figures by stage.
        pictures: figures of whole pictures.
        failures: what was out of tolerance, in words; empty is a pass.
    """

    backend: str
    precision: Precision
    fingerprint: str
    reference: str
    packages: dict[str, str]
    stages: dict[StageName, StageFigures]
    pictures: tuple[PictureFigures, ...]
    failures: tuple[str, ...]

    @property
    def is_passed(self) -> bool:
        """Whether everything was within the tolerances."""
        return not self.failures


class Verdicts(_Frozen):
    """Everything that is known of a bundle."""

    format_version: int = Field(default=1, ge=1, le=1)
    verdicts: tuple[Verdict, ...] = ()

    @classmethod
    def load(cls, bundle: Path) -> Verdicts:
        """Read `bundle`/check.json; none yet is an empty list.

        Raises:
            BundleError: the file is damaged.
        """
        path = Path(bundle) / CHECK_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return cls()
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "file"
            raise BundleError(
                f"{path} is damaged ({field}: {first['msg']}): "
                "delete it and run `onestep-engines check` again"
            ) from error
        except OSError as error:
            raise BundleError(f"cannot read {path}: {error.strerror}") from error

    def find(self, chosen: Configuration) -> Verdict | None:
        """The verdict on a configuration, of whatever graphs."""
        for verdict in self.verdicts:
            if (verdict.backend, verdict.precision) == (chosen.backend, chosen.precision):
                return verdict
        return None

    def having(self, verdict: Verdict) -> Verdicts:
        """The same with one configuration's verdict replaced or added."""
        others = [
            other
            for other in self.verdicts
            if (other.backend, other.precision) != (verdict.backend, verdict.precision)
        ]
        return Verdicts(verdicts=(*others, verdict))

    def save(self, bundle: Path) -> None:
        """Write `bundle`/check.json whole or not at all."""
        path = Path(bundle) / CHECK_FILE
        partial = path.with_suffix(".partial")
        partial.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        partial.replace(path)


def fingerprint(spec: ModelSpec, precision: Precision) -> str:
    """What a verdict holds for: the digests of a precision's graphs, and how they are used."""
    files = {
        stage: [entry.sha256, entry.weights.sha256 if entry.weights else None]
        for stage, entry in spec.stage_files(precision).items()
    }
    used = spec.model_dump(mode="json", include=_DRAWING_FIELDS)
    tokenizer = spec.files.get(spec.tokenizer_file)
    text = json.dumps([files, used, tokenizer], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def package_versions(backend: str) -> dict[str, str]:
    """Versions of the packages that a backend computes with, without importing them."""
    versions = {}
    for name in _PACKAGES.get(backend, (backend,)):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "unknown"
    return versions


def require_passed(
    bundle: Path, spec: ModelSpec, chosen: Configuration, *, allow_failed: bool = False
) -> None:
    """Refuse a configuration that is known to draw other pictures than the reference.

    One that was never checked is let through with a line in the log.

    Raises:
        BundleError: check.json is damaged, or of other graphs than the bundle's.
        ParityError: the check failed.
    """
    if not spec.stages:
        return  # a torch folder: it is what others are compared with
    verdict = Verdicts.load(bundle).find(chosen)
    name = f"{chosen.backend} {chosen.precision}"
    if verdict is None:
        _log.info("%s: %s was never checked: `onestep-engines check` does", spec.name, name)
        return
    if verdict.fingerprint != fingerprint(spec, chosen.precision):
        problem: BundleError | ParityError = BundleError(
            f"{bundle / CHECK_FILE}: the verdict on {name} is of other graphs than the bundle's: "
            "run `onestep-engines check` again, or allow a failed check"
        )
    elif not verdict.is_passed:
        problem = ParityError(
            f"{bundle}: {name} failed its check ({verdict.failures[0]}): "
            "choose another backend or precision, or allow a failed check"
        )
    else:
        if verdict.packages != package_versions(chosen.backend):
            _log.info("%s: %s was checked with other versions of its packages", spec.name, name)
        return
    if not allow_failed:
        raise problem
    _log.warning("%s", problem)
