"""Which plans a build refits, compiles or keeps, and what it does with the timing cache.

Refitting and the timing cache need a GPU, so a stand-in takes the compiler's place here: its plans
are bytes that say how they were made. The calls themselves are checked in test_tensorrt_api.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from micro_bundle import write_micro_bundle

import engines.build
from engines.build import Target, build_engines
from engines.errors import BackendError, BundleError
from engines.plans import CACHE_SUFFIX, EngineList, EngineRecord
from engines.profiles import BatchRange, Platform
from engines.progress import Lines
from engines.spec import ModelSpec, Precision, StageFile, StageName, sha256_of
from engines.timings import TIMINGS_FILE, load_timings

PLATFORM = Platform(package="tensorrt", package_version="11.4", compute_capability="SM90")
TARGET = Target("tensorrt", None, (BatchRange.of(1),), refit=True)


class StandIn:
    """A compiler on a machine with a GPU."""

    made: tuple[str, ...] = ()
    refusal = ""

    def __init__(self, package: str, compute_capability: str | None) -> None:
        self.platform = PLATFORM.model_copy(update={"package": package})
        self.keeps_timings = package == "tensorrt"
        self.timings = b""

    def compile(self, graph: Path, spec: Any, batch: BatchRange, *, refit: bool, **_: Any) -> bytes:
        StandIn.made += (f"compile {graph.stem} {batch}",)
        if self.keeps_timings:
            self.timings += graph.stem.encode() + b" "
        return f"compiled {graph} {batch} {refit}".encode()

    def refit(self, plan: bytes, graph: Path) -> bytes:
        if self.refusal:
            raise BackendError(self.refusal)
        StandIn.made += (f"refit {graph.stem}",)
        return plan + f" refitted to {graph}".encode()


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    monkeypatch.setattr(engines.build, "Compiler", StandIn)
    monkeypatch.setattr(StandIn, "made", ())
    monkeypatch.setattr(StandIn, "refusal", "")
    return StandIn


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_micro_bundle(tmp_path / "bundle")


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The same architecture with other weights."""
    return write_micro_bundle(tmp_path / "trained", seed=1)


def _build(bundle: Path, plans: Path, target: Target = TARGET) -> tuple[list[EngineRecord], Any]:
    """(records, what was made); the lines that were reported follow what was made."""
    StandIn.made = ()
    lines: list[str] = []
    records = build_engines(bundle, plans, target, progress=Lines(lines.append))
    return records, (StandIn.made, lines)


def test_new_weights_go_into_the_older_plan(bundle: Path, trained: Path, tmp_path: Path) -> None:
    plans = tmp_path / "plans"
    before, (made, _) = _build(bundle, plans)
    assert made == ("compile text 1", "compile denoise 1", "compile decode 1")
    after, (made, _) = _build(trained, plans)
    assert made == ("refit text", "refit denoise", "refit decode")
    assert EngineList.load(plans).engines == tuple(after)
    for old, new in zip(before, after, strict=True):
        assert (old.made_by, new.made_by) == ("compile", "refit")
        assert new.key.is_refit_of(old.key)
        assert b" refitted to " in (plans / new.file).read_bytes()
        assert not (plans / old.file).exists()
    # A refitted plan can be refitted again, here to what it was.
    again, (made, _) = _build(bundle, plans)
    assert made == ("refit text", "refit denoise", "refit decode")
    assert [record.key for record in again] == [record.key for record in before]
    _, (made, lines) = _build(bundle, plans)
    assert made == ()
    assert all("up to date" in line for line in lines)


def test_another_architecture_is_compiled(bundle: Path, tmp_path: Path) -> None:
    plans = tmp_path / "plans"
    _build(bundle, plans)
    wider = write_micro_bundle(tmp_path / "wider", seed=1, num_channels=16)
    _, (made, _) = _build(wider, plans)
    assert made == ("refit text", "compile denoise 1", "refit decode")


def test_without_the_option_everything_is_compiled(
    bundle: Path, trained: Path, tmp_path: Path
) -> None:
    plain = Target("tensorrt", None, TARGET.batches)
    for first, second in ((TARGET, plain), (plain, TARGET)):
        plans = tmp_path / f"plans-{first.refit}"
        _build(bundle, plans, first)
        _, (made, _) = _build(trained, plans, second)
        assert all(word.startswith("compile ") for word in made)
        assert len(made) == 3


def test_what_a_runtime_kept_of_a_plan_goes_with_it(
    bundle: Path, trained: Path, tmp_path: Path
) -> None:
    plans = tmp_path / "plans"
    (text, denoise, _), _ = _build(bundle, plans)
    caches = [(plans / record.file).with_suffix(CACHE_SUFFIX) for record in (text, denoise)]
    for cache in caches:
        cache.write_bytes(b"kernels")
    _build(bundle, plans)
    assert all(cache.exists() for cache in caches)
    EngineList.load(plans).without(text).save(plans)
    _build(trained, plans)  # one is not listed any more, the other is replaced
    assert not any(cache.exists() for cache in caches)
    assert load_timings(plans, PLATFORM)[0]  # of the same ending, and nobody's


def test_the_graphs_of_the_wanted_precision_are_compiled(bundle: Path, tmp_path: Path) -> None:
    path = bundle / "denoise.float16.onnx"
    other = write_micro_bundle(tmp_path / "other", seed=1)
    path.write_bytes((other / "denoise.onnx").read_bytes())
    file = StageFile(file=path.name, sha256=sha256_of(path), size_bytes=path.stat().st_size)
    variants: dict[Precision, dict[StageName, StageFile]] = {"float16": {"denoise": file}}
    ModelSpec.load(bundle).model_copy(update={"variants": variants}).save(bundle)
    plans = tmp_path / "plans"
    base = Target("tensorrt", None, TARGET.batches)
    _, (made, _) = _build(bundle, plans, base)
    assert made == ("compile text 1", "compile denoise 1", "compile decode 1")
    _, (made, _) = _build(bundle, plans, replace(base, precision="float16"))
    assert made == ("compile denoise.float16 1",)  # the others are the base's
    assert len(EngineList.load(plans).engines) == 4
    with pytest.raises(BundleError, match="has no int8 graphs, only float32, float16: export"):
        _build(bundle, plans, replace(base, precision="int8"))


def test_a_damaged_plan_is_not_refitted(bundle: Path, trained: Path, tmp_path: Path) -> None:
    plans = tmp_path / "plans"
    (text, *_), _ = _build(bundle, plans)
    (plans / text.file).write_bytes(b"damaged")
    _, (made, _) = _build(trained, plans)
    assert made == ("compile text 1", "refit denoise", "refit decode")


def test_a_plan_that_takes_no_weights_is_compiled_instead_and_said_so(
    bundle: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = tmp_path / "plans"
    _build(bundle, plans)
    monkeypatch.setattr(StandIn, "refusal", "the older plan takes no other weights")
    records, (made, lines) = _build(trained, plans)
    assert made == ("compile text 1", "compile denoise 1", "compile decode 1")
    assert lines[0] == "text batch 1: the older plan takes no other weights; compiling instead"
    assert {record.made_by for record in records} == {"compile"}


def test_the_timing_cache_is_kept_between_builds_and_ignored_where_it_is_foreign(
    bundle: Path, trained: Path, tmp_path: Path
) -> None:
    plans = tmp_path / "plans"
    plain = Target("tensorrt", None, TARGET.batches)
    _build(bundle, plans, plain)
    assert load_timings(plans, PLATFORM) == (b"text denoise decode ", None)
    _build(trained, plans, plain)
    assert load_timings(plans, PLATFORM)[0] == b"text denoise decode " * 2

    (plans / TIMINGS_FILE).write_bytes(b"damaged")
    _, (_, lines) = _build(bundle, plans, plain)
    assert lines[0] == f"{plans / TIMINGS_FILE} is ignored: it is damaged"
    assert load_timings(plans, PLATFORM)[0] == b"text denoise decode "


def test_a_package_that_measures_nothing_keeps_no_timing_cache(
    bundle: Path, tmp_path: Path
) -> None:
    plans = tmp_path / "plans"
    _build(bundle, plans, Target("tensorrt_rtx", "SM89", TARGET.batches))
    assert not (plans / TIMINGS_FILE).exists()
