"""The compiled plans of a folder: engines.json, and how a plan is loaded safely.

A plan is code that the driver runs, so only what this project built here and listed with its digest
is ever handed out. Owns the list, the choice of a plan for a key, and every refusal. Knows no
compiler and no runtime: a plan is bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engines.disk import locked, set_aside, write_whole
from engines.errors import BackendError, DamagedPlanError, PlanError
from engines.profiles import BatchRange, EngineKey
from engines.spec import sha256_of

# Where a bundle has its plans unless another folder is named, and their list.
ENGINES_FOLDER = "engines"
ENGINES_FILE = "engines.json"
# What a runtime keeps beside a plan, under its name with this ending; gone when the plan is.
CACHE_SUFFIX = ".cache"
REMEDY = "run `onestep-engines build`"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineRecord(_Frozen):
    """One plan beside the list.

    Attributes:
        file: name of the plan in the folder.
        graph_file: name of the graph in the bundle that it was made from.
        made_by: "compile", or "refit" where weights were put into an older plan.
    """

    file: str
    graph_file: str
    sha256: str
    size_bytes: int = Field(ge=1)
    fingerprint: str
    key: EngineKey
    made_by: Literal["compile", "refit"]
    build_s: float

    @model_validator(mode="after")
    def _check(self) -> EngineRecord:
        if self.file in ("", ".", "..") or PurePosixPath(self.file).name != self.file:
            raise ValueError(f"{self.file!r} lies outside the folder of plans")
        if self.fingerprint != self.key.fingerprint:
            raise ValueError(f"the fingerprint of {self.file} does not fit its key")
        return self

    def replaces(self, other: EngineRecord) -> bool:
        """Whether the other one is no longer wanted: the same part for the same GPU and batch."""
        return self.file == other.file or self._slot() == other._slot()

    def _slot(self) -> tuple[str, str, str, BatchRange]:
        platform = self.key.platform
        return self.graph_file, platform.package, platform.compute_capability, self.key.batch


class EngineList(_Frozen):
    """engines.json: the plans that this project built here, with their digests."""

    format_version: Literal[2] = 2
    engines: tuple[EngineRecord, ...] = ()

    @classmethod
    def load(cls, folder: Path) -> EngineList:
        """Read the list; a folder without one has no plans.

        Raises:
            DamagedPlanError: the list is damaged, of another version or contradicts itself.
        """
        path = Path(folder) / ENGINES_FILE
        if not path.is_file():
            return cls()
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "file"
            reason = first["msg"].removeprefix("Value error, ")
            raise DamagedPlanError(
                f"{path} is damaged or of another version ({field}: {reason}): {REMEDY}"
            ) from error
        except OSError as error:
            raise PlanError(f"cannot read {path}: {error.strerror}") from error

    def save(self, folder: Path) -> None:
        """Write the list whole or not at all.

        Raises:
            BackendError: the disk is full or read-only.
        """
        content = self.model_dump_json(indent=2) + "\n"
        write_whole(Path(folder) / ENGINES_FILE, content.encode())

    def find(self, key: EngineKey) -> EngineRecord | None:
        """The plan of this very key."""
        return next((record for record in self.engines if record.key == key), None)

    def refit_base(self, key: EngineKey) -> EngineRecord | None:
        """A plan that differs from `key` in its weights alone, and can take others."""
        return next((record for record in self.engines if key.is_refit_of(record.key)), None)

    def having(self, record: EngineRecord) -> EngineList:
        """The list with `record` in place of those that it replaces."""
        kept = tuple(other for other in self.engines if not record.replaces(other))
        return EngineList(engines=(*kept, record))

    def without(self, record: EngineRecord) -> EngineList:
        """The list without a record."""
        return EngineList(engines=tuple(other for other in self.engines if other != record))

    def packages(self, folder: Path) -> tuple[str, ...]:
        """The TensorRT packages that the plans of `folder` are of.

        Raises:
            PlanError: there are no plans.
        """
        if not self.engines:
            raise _none_listed(folder)
        return tuple(dict.fromkeys(record.key.platform.package for record in self.engines))

    def batches(self, key: EngineKey) -> tuple[BatchRange, ...]:
        """The batch ranges that plans are listed for, all else being as in `key`; ascending."""
        found = {record.key.batch for record in self.engines if not _difference(record.key, key)}
        return tuple(sorted(found, key=lambda batch: (batch.max, batch.min)))


def load_plan(folder: Path, key: EngineKey) -> bytes:
    """The bytes of the plan for `key`, compared with their digest; refittable or not is the same.

    A damaged plan is renamed to NAME.damaged, so that it is built again and can be looked at.

    Raises:
        PlanError: no plan is listed for the key, or its file is missing or lies elsewhere.
        DamagedPlanError: the plan or the list is not what was written.
    """
    folder = Path(folder)
    record = choose_plan(EngineList.load(folder), folder, key)
    path = folder / record.file
    if path.is_symlink() and path.resolve().parent != folder.resolve():
        raise PlanError(f"{path} is a link to outside the folder of plans: delete it and {REMEDY}")
    try:
        plan = path.read_bytes()
    except FileNotFoundError as error:
        raise PlanError(f"{path} is listed and missing: {REMEDY}") from error
    except OSError as error:
        raise PlanError(f"cannot read {path}: {error.strerror}") from error
    fault = _fault(record, len(plan), lambda: hashlib.sha256(plan).hexdigest())
    if fault is not None:
        raise DamagedPlanError(f"{path} is damaged ({fault}): {_quarantine(folder, record)}")
    return plan


def is_whole(folder: Path, record: EngineRecord) -> bool:
    """Whether a listed plan's file is what was written."""
    path = folder / record.file
    if not path.is_file():
        return False
    return _fault(record, path.stat().st_size, lambda: sha256_of(path)) is None


def _fault(record: EngineRecord, size_bytes: int, digest: Callable[[], str]) -> str | None:
    if size_bytes != record.size_bytes:
        return f"{size_bytes} bytes instead of {record.size_bytes}"
    if digest() != record.sha256:
        return f"sha256 differs from {ENGINES_FILE}"
    return None


def _quarantine(folder: Path, record: EngineRecord) -> str:
    """Set a damaged plan aside and say so, and what to do.

    Another build may have replaced the plan meanwhile, so it is looked at again under the lock.
    """
    path = folder / record.file
    try:
        with locked(folder, _refuse_to_wait):
            if path.is_file() and not is_whole(folder, record):
                return f"set aside as {set_aside(path).name}, {REMEDY}"
    except (OSError, BackendError):  # read-only, or a build holds the lock and will see to it
        pass
    return REMEDY


def _refuse_to_wait() -> None:
    raise BackendError("a build is running")


class _Difference(NamedTuple):
    """The first thing, in the order of `rank`, that makes a listed plan unfit."""

    rank: int
    what: str
    listed: str
    wanted: str


def _difference(listed: EngineKey, wanted: EngineKey) -> _Difference | None:
    """Why a plan of the same stage is unfit; None if nothing is, or its batch alone."""
    there, here = listed.platform, wanted.platform

    def sizes(key: EngineKey) -> str:
        return ", ".join(f"{width}x{height}" for width, height in key.sizes_px)

    pairs = (
        ("stage", listed.stage, wanted.stage),
        ("package", there.package, here.package),
        (f"{here.package} version", there.package_version, here.package_version),
        ("compute capability", there.compute_capability, here.compute_capability),
        ("set of sizes", sizes(listed), sizes(wanted)),
        ("graph", listed.architecture_sha256, wanted.architecture_sha256),
        ("set of weights", listed.weights_sha256, wanted.weights_sha256),
    )
    for rank, (what, its, asked) in enumerate(pairs):
        if its != asked:
            return _Difference(rank, what, its[:40], asked[:40])
    return None


def _none_listed(folder: Path) -> PlanError:
    return PlanError(f"{folder} lists no plans: {REMEDY}")


def choose_plan(listed: EngineList, folder: Path, key: EngineKey) -> EngineRecord:
    """The record for `key` in the list of `folder`; refittable or not is the same.

    Raises:
        PlanError: none fits; says why those that come closest do not.
    """
    if not listed.engines:
        raise _none_listed(folder)
    of_stage = [record for record in listed.engines if record.key.stage == key.stage]
    if not of_stage:
        raise PlanError(f"{folder} lists no plan of the {key.stage} stage: {REMEDY}")
    differences = [_difference(record.key, key) for record in of_stage]
    closest = max((found for found in differences if found), default=None)
    alike = [record for record in of_stage if not _difference(record.key, key)]
    if not alike and closest:
        raise PlanError(
            f"{folder} holds {key.stage} plans for another {closest.what} "
            f"({closest.listed}; wanted {closest.wanted}): {REMEDY}"
        )
    fitting = [record for record in alike if record.key.batch == key.batch]
    if not fitting:
        batches = ", ".join(sorted({str(record.key.batch) for record in alike}))
        raise PlanError(
            f"{folder} holds {key.stage} plans for batch {batches} and none for {key.batch}: "
            f"{REMEDY} with --batch {key.batch}"
        )
    return min(fitting, key=lambda record: record.key.refit != key.refit)
