"""The list of plans: what it finds, what replaces what, and every plan that is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plans_fixtures import KEY, write_plan

from engines.disk import locked
from engines.errors import BackendError, DamagedPlanError, PlanError
from engines.plans import ENGINES_FILE, EngineList, is_whole, load_plan
from engines.profiles import BatchRange, EngineKey


def _key(**changes: Any) -> EngineKey:
    platform = {name: changes.pop(name) for name in list(changes) if name in _PLATFORM_FIELDS}
    if platform:
        changes["platform"] = KEY.platform.model_copy(update=platform)
    return KEY.model_copy(update=changes)


_PLATFORM_FIELDS = ("package", "package_version", "compute_capability")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that lists one whole plan, for `KEY`."""
    folder = tmp_path / "plans"
    folder.mkdir()
    EngineList().having(write_plan(folder)).save(folder)
    return folder


def test_a_listed_whole_plan_is_loaded(folder: Path) -> None:
    assert load_plan(folder, KEY) == b"plan"
    (record,) = EngineList.load(folder).engines
    assert EngineList.load(folder).find(KEY) == record
    assert is_whole(folder, record)


def test_a_refittable_plan_serves_as_well_and_the_exact_one_comes_first(folder: Path) -> None:
    refittable = write_plan(folder, _key(refit=True), "refit.plan", b"refittable")
    EngineList(engines=(refittable,)).save(folder)
    assert load_plan(folder, KEY) == b"refittable"
    plain = write_plan(folder)
    EngineList(engines=(refittable, plain)).save(folder)
    assert load_plan(folder, KEY) == b"plan"
    assert load_plan(folder, _key(refit=True)) == b"refittable"


def _truncate(folder: Path) -> None:
    (folder / "text-b4.plan").write_bytes(b"pla")


def _alter(folder: Path) -> None:
    (folder / "text-b4.plan").write_bytes(b"plaN")


def _link_away(folder: Path) -> None:
    outside = folder.parent / "outside.plan"
    (folder / "text-b4.plan").rename(outside)
    (folder / "text-b4.plan").symlink_to(outside)


def _edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change engines.json as somebody's editor would."""

    def edit(folder: Path) -> None:
        path = folder / ENGINES_FILE
        listed = json.loads(path.read_text())
        change(listed)
        path.write_text(json.dumps(listed))

    return edit


def _nothing(folder: Path) -> None:
    pass


REFUSED: dict[str, tuple[Callable[[Path], None], EngineKey, type[PlanError], str]] = {
    "a folder that is not there": (
        lambda folder: shutil.rmtree(folder),
        KEY,
        PlanError,
        "FOLDER lists no plans: run `onestep-engines build`",
    ),
    "no list": (
        lambda folder: (folder / ENGINES_FILE).unlink(),
        KEY,
        PlanError,
        "FOLDER lists no plans",
    ),
    "a list that is no JSON": (
        lambda folder: (folder / ENGINES_FILE).write_bytes(b"{") and None,
        KEY,
        DamagedPlanError,
        "FOLDER/engines.json is damaged or of another version",
    ),
    "a list of another version": (
        _edit(lambda listed: listed.update(format_version=1)),
        KEY,
        DamagedPlanError,
        "FOLDER/engines.json is damaged or of another version (format_version: ",
    ),
    "a list with a field too many": (
        _edit(lambda listed: listed["engines"][0].update(trusted=True)),
        KEY,
        DamagedPlanError,
        "(engines.0.trusted: ",
    ),
    "a folder in place of the list": (
        lambda folder: [(folder / ENGINES_FILE).unlink(), (folder / ENGINES_FILE).mkdir()] and None,
        KEY,
        PlanError,
        "lists no plans",
    ),
    "a fingerprint of another key": (
        _edit(lambda listed: listed["engines"][0].update(fingerprint="f" * 64)),
        KEY,
        DamagedPlanError,
        "(engines.0: the fingerprint of text-b4.plan does not fit its key)",
    ),
    "a key that was edited": (
        _edit(
            lambda listed: listed["engines"][0]["key"]["platform"].update(
                compute_capability="SM120"
            )
        ),
        _key(compute_capability="SM120"),
        DamagedPlanError,
        "(engines.0: the fingerprint of text-b4.plan does not fit its key)",
    ),
    "a path above the folder": (
        _edit(lambda listed: listed["engines"][0].update(file="../outside.plan")),
        KEY,
        DamagedPlanError,
        "(engines.0: '../outside.plan' lies outside the folder of plans)",
    ),
    "an absolute path": (
        _edit(lambda listed: listed["engines"][0].update(file="/etc/passwd")),
        KEY,
        DamagedPlanError,
        "(engines.0: '/etc/passwd' lies outside the folder of plans)",
    ),
    "a link to outside": (
        _link_away,
        KEY,
        PlanError,
        "FOLDER/text-b4.plan is a link to outside the folder of plans: delete it",
    ),
    "a plan that is not there": (
        lambda folder: (folder / "text-b4.plan").unlink(),
        KEY,
        PlanError,
        "FOLDER/text-b4.plan is listed and missing: run `onestep-engines build`",
    ),
    "a plan that is a folder": (
        lambda folder: (
            [(folder / "text-b4.plan").unlink(), (folder / "text-b4.plan").mkdir()] and None
        ),
        KEY,
        PlanError,
        "cannot read FOLDER/text-b4.plan: Is a directory",
    ),
    "a plan cut short": (
        _truncate,
        KEY,
        DamagedPlanError,
        "FOLDER/text-b4.plan is damaged (3 bytes instead of 4): set aside as text-b4.plan.damaged",
    ),
    "a plan with a bit that flipped": (
        _alter,
        KEY,
        DamagedPlanError,
        "FOLDER/text-b4.plan is damaged (sha256 differs from engines.json): set aside as "
        "text-b4.plan.damaged, run `onestep-engines build`",
    ),
    "another stage": (
        _nothing,
        _key(stage="decode"),
        PlanError,
        "FOLDER lists no plan of the decode stage",
    ),
    "another package": (
        _nothing,
        _key(package="tensorrt"),
        PlanError,
        "holds text plans for another package (tensorrt_rtx; wanted tensorrt)",
    ),
    "another version": (
        _nothing,
        _key(package_version="1.8.0"),
        PlanError,
        "holds text plans for another tensorrt_rtx version (1.7.1; wanted 1.8.0)",
    ),
    "another GPU": (
        _nothing,
        _key(compute_capability="SM120"),
        PlanError,
        "holds text plans for another compute capability (SM89; wanted SM120)",
    ),
    "other sizes": (
        _nothing,
        _key(sizes_px=((64, 64), (128, 64))),
        PlanError,
        "holds text plans for another set of sizes (64x64; wanted 64x64, 128x64)",
    ),
    "another graph": (
        _nothing,
        _key(architecture_sha256="2" * 64),
        PlanError,
        "holds text plans for another graph (00000",
    ),
    "other weights": (
        _nothing,
        _key(weights_sha256="2" * 64),
        PlanError,
        "holds text plans for another set of weights (11111",
    ),
    "another batch size": (
        _nothing,
        _key(batch=BatchRange.of(3)),
        PlanError,
        "holds text plans for batch 4 and none for 3: run `onestep-engines build` with --batch 3",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_one_clear_line(case: str, folder: Path) -> None:
    damage, key, error_type, message = REFUSED[case]
    damage(folder)
    with pytest.raises(PlanError) as caught:
        load_plan(folder, key)
    assert type(caught.value) is error_type
    assert message.replace("FOLDER", str(folder)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_difference_that_is_named_is_that_of_the_closest_plan(folder: Path) -> None:
    far = write_plan(folder, _key(package="tensorrt"), "far.plan")
    near = write_plan(folder, _key(weights_sha256="5" * 64), "near.plan")
    EngineList(engines=(near, far)).save(folder)
    with pytest.raises(PlanError, match="another set of weights"):
        load_plan(folder, KEY)


def test_a_damaged_plan_is_set_aside_and_then_missing(folder: Path) -> None:
    _alter(folder)
    with pytest.raises(DamagedPlanError):
        load_plan(folder, KEY)
    assert (folder / "text-b4.plan.damaged").read_bytes() == b"plaN"
    with pytest.raises(PlanError, match="listed and missing"):
        load_plan(folder, KEY)


def test_a_damaged_plan_is_left_to_a_build_that_is_running(folder: Path) -> None:
    _alter(folder)
    with locked(folder, lambda: None):
        with pytest.raises(DamagedPlanError, match=r"json\): run `onestep-engines build`"):
            load_plan(folder, KEY)
    assert (folder / "text-b4.plan").read_bytes() == b"plaN"


def test_a_folder_that_cannot_be_written_still_refuses_a_damaged_plan(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _alter(folder)

    def read_only(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", read_only)
    monkeypatch.setattr(Path, "replace", read_only)
    with pytest.raises(DamagedPlanError, match=r"json\): run `onestep-engines build`"):
        load_plan(folder, KEY)


def test_a_plan_replaces_the_one_of_its_part_gpu_and_batch(folder: Path) -> None:
    (old,) = EngineList.load(folder).engines
    new = write_plan(folder, _key(weights_sha256="2" * 64), "new.plan")
    assert EngineList().having(old).having(new).engines == (new,)
    for change in (
        {"batch": BatchRange.of(8)},
        {"compute_capability": "SM120"},
        {"package": "tensorrt"},
    ):
        other = write_plan(folder, _key(**change), "other.plan")
        assert EngineList().having(old).having(other).engines == (old, other)
    half = old.model_copy(update={"graph_file": "text.float16.onnx", "file": "half.plan"})
    assert EngineList().having(old).having(half).engines == (old, half)


def test_a_plan_to_refit_differs_in_its_weights_alone(folder: Path) -> None:
    base = write_plan(folder, _key(refit=True), "base.plan")
    listed = EngineList().having(base)
    assert listed.refit_base(_key(refit=True, weights_sha256="2" * 64)) == base
    assert listed.refit_base(_key(refit=False, weights_sha256="2" * 64)) is None
    assert listed.refit_base(_key(refit=True, architecture_sha256="2" * 64)) is None


def test_the_batch_sizes_of_fitting_plans_are_listed_in_order(folder: Path) -> None:
    sizes = [BatchRange.of(16), BatchRange.of(2), BatchRange(min=1, opt=4, max=8)]
    records = [
        write_plan(folder, _key(batch=batch), f"{index}.plan") for index, batch in enumerate(sizes)
    ]
    foreign = write_plan(folder, _key(package="tensorrt", batch=BatchRange.of(1)), "foreign.plan")
    found = EngineList(engines=(*records, foreign)).batches(KEY)
    assert [str(batch) for batch in found] == ["2", "1:4:8", "16"]


def test_a_list_that_cannot_be_written_is_one_line(folder: Path) -> None:
    with pytest.raises(BackendError, match=r"cannot write .*engines\.json: No such file"):
        EngineList().save(folder / "nowhere")
