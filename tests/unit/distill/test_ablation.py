"""The ablation's rows, files, verdicts and tables: arithmetic and refusals, without a network."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest

from distill.ablation.claims import CLAIMS, Claim, goals, judged
from distill.ablation.options import AblationOptions, add_ablation_options
from distill.ablation.results import Drawn, RunResult, run_path
from distill.ablation.rows import (
    FULL,
    ROWS,
    TEACHER,
    num_pictures,
    plan,
    require_equal_budgets,
)
from distill.ablation.tables import figures_of, page, teacher_aliases
from distill.config import ConfigError, override
from distill.presets import ablation_cpu, ablation_tiny
from distill.presets.miniatures import ablation_gpu

KIND = "without style"


def _run(row: str, seed: int, distance: float, sampler: str = "student, 1 step") -> RunResult:
    scores = {KIND: {"frechet_distance": distance, "recall": 0.5}}
    num_steps = 25 if "25" in sampler else 1
    drawn = Drawn(sampler, num_steps, num_steps, 2.0, scores)
    return RunResult(row, seed, {"seed": seed}, 64, 3.0, (drawn,), {"d_accuracy": 0.75})


# rows


@pytest.mark.parametrize("preset", [ablation_tiny, ablation_cpu, ablation_gpu])
def test_every_row_changes_something_and_only_what_it_says(preset: object) -> None:
    base = preset()  # type: ignore[operator]
    planned = plan(base)
    assert set(planned.skipped) == {"features_vision", "vision_adversarial_only"}
    assert all("--vision" in reason for reason in planned.skipped.values())
    assert planned.configs.keys() | planned.skipped.keys() == {row.name for row in ROWS}
    assert planned.configs[FULL] == base
    for name, config in planned.configs.items():
        assert replace(config, student=base.student) == base, name
        assert (config == base) == (name == FULL), name
    assert planned.has_teacher


def test_rows_are_chosen_by_name() -> None:
    planned = plan(ablation_tiny(), ["init_random", FULL])
    assert list(planned.configs) == [FULL, "init_random"]
    assert not planned.has_teacher
    assert plan(ablation_tiny(), [TEACHER]).has_teacher


def test_an_unknown_row_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no row fulll; rows: full, adversarial_only"):
        plan(ablation_tiny(), ["fulll"])


def test_a_vision_model_gives_the_rows_that_look_through_it() -> None:
    base, names = ablation_tiny(), ["features_vision", "vision_adversarial_only"]
    planned = plan(base, names, "some/folder")
    for config in planned.configs.values():
        disc = config.student.discriminator
        assert (disc.features, disc.vision_model) == ("vision", "some/folder")
    lambdas = [planned.configs[name].student.lambda_distill for name in names]
    assert lambdas == [base.student.lambda_distill, 0]


@pytest.mark.parametrize("field", ["iterations=5", "batch_size=5"])
def test_a_row_with_more_pictures_is_refused(field: str) -> None:
    base = ablation_tiny()
    richer = override(base, (f"student.optimizer.{field}",))
    assert num_pictures(base) == 16
    with pytest.raises(ConfigError, match=f"full 16, richer {num_pictures(richer)}"):
        require_equal_budgets({FULL: base, "richer": richer})


def test_shares_are_those_of_the_full_row_scaled() -> None:
    planned = plan(ablation_tiny(), ["share_quarter", "share_fourfold"])
    shares = [config.student.adversarial_share for config in planned.configs.values()]
    full = ablation_tiny().student.adversarial_share
    assert full is not None
    assert shares == [full / 4, full * 4]
    fixed = override(ablation_tiny(), ("student.adversarial_share=null",))
    assert "share_quarter" in plan(fixed, ["share_quarter"]).skipped


# files


def test_a_finished_run_is_read_back(tmp_path: Path) -> None:
    run = _run(FULL, 3, 0.5)
    assert RunResult.load(tmp_path, FULL, 3) is None
    run.save(tmp_path)
    assert RunResult.load(tmp_path, FULL, 3) == run
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["full-seed3.json"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: text.replace('"schema": 1', '"schema": 2'),
        lambda text: text.replace('"sampler"', '"sample"'),
        lambda text: "[]",
    ],
)
def test_a_damaged_run_is_named(tmp_path: Path, damage: object) -> None:
    _run(FULL, 0, 0.5).save(tmp_path)
    path = run_path(tmp_path, FULL, 0)
    path.write_text(damage(path.read_text()))  # type: ignore[operator]
    with pytest.raises(ConfigError, match=r"full-seed0\.json is damaged .*: remove it"):
        RunResult.load(tmp_path, FULL, 0)


def test_a_run_of_other_settings_is_refused(tmp_path: Path) -> None:
    run = replace(_run(FULL, 0, 0.5), made_of={"student.lambda_distill": 2.5, "older": 1})
    run.require_same({"student.lambda_distill": 2.5, "newer": 2}, tmp_path)
    with pytest.raises(ConfigError, match=r"student\.lambda_distill \(was 2\.5\): remove it"):
        run.require_same({"student.lambda_distill": 1.0}, tmp_path)


def _options(*words: str) -> AblationOptions:
    parser = argparse.ArgumentParser()
    add_ablation_options(parser)
    return AblationOptions.read(parser.parse_args(list(words)))


def test_seeds_are_different_whole_numbers(tmp_path: Path) -> None:
    judge = tmp_path / "judge.npz"
    judge.touch()
    options = _options("--features", str(judge), "--seeds", "4,1", "--rows", "full,teacher")
    assert options.seeds == (4, 1)
    assert options.rows == ("full", "teacher")
    assert not options.evaluation.has_intervals
    for words in ("1,1", "-1,2", "", "a"):
        with pytest.raises(ConfigError, match="--seeds takes"):
            _options("--features", str(judge), f"--seeds={words}")


# verdicts


def _figures(**distances: list[float]) -> dict[str, dict[int, dict[str, dict[str, float]]]]:
    return {
        name: {
            seed: {KIND: {"frechet_distance": value, "recall": 0.4}}
            for seed, value in enumerate(values)
        }
        for name, values in distances.items()
    }


CLAIM = Claim("a is better", "a", "b", "1 against 2")


@pytest.mark.parametrize(
    ("b", "words"),
    [
        ([1.3, 1.2, 1.4], "agrees"),
        ([0.7, 0.8, 0.6], "disagrees"),
        ([1.3, 0.7, 1.1], "not decided"),
        ([1.3], "one seed: not decided"),
    ],
)
def test_a_claim_is_judged_by_paired_differences(b: list[float], words: str) -> None:
    (verdict,) = judged([CLAIM], _figures(a=[1.0, 1.0, 1.0], b=b), [KIND])
    assert verdict.words == words
    assert verdict.difference.value == pytest.approx(sum(b) / len(b) - 1)


def test_seeds_that_vary_together_still_tell() -> None:
    """The rows' own spread is far larger than their difference, which is steady."""
    figures = _figures(a=[1.0, 3.0, 9.0], b=[1.1, 3.12, 9.11])
    (verdict,) = judged([CLAIM], figures, [KIND])
    assert verdict.words == "agrees"
    # Differences 0.1, 0.12, 0.11: mean 0.11, s 0.01; t(0.975, 2) = 4.302653.
    half = 4.302653 * 0.01 / 3**0.5
    assert verdict.difference.low == pytest.approx(0.11 - half, rel=1e-4)


def test_a_claim_without_runs_says_nothing() -> None:
    assert judged([CLAIM], _figures(a=[1.0]), [KIND]) == []
    assert judged([CLAIM], _figures(a=[1.0], b=[2.0]), ["other"]) == []


def test_claims_name_rows_that_exist() -> None:
    known = {row.name for row in ROWS} | {f"{TEACHER} {steps}" for steps in (4, 8, 25)}
    assert {label for claim in CLAIMS for label in (claim.better, claim.worse)} <= known


@pytest.mark.parametrize("row", ["full", "features_vision"])
def test_the_aims_are_ratios(row: str) -> None:
    figures = _figures(
        **{
            row: [1.2, 1.2],
            "teacher 25": [1.0, 1.0],
            "teacher 4": [1.5, 1.5],
            "regression_real": [1.6, 1.6],
        },
    )
    figures["teacher 25"] = {
        seed: {KIND: scores[KIND] | {"recall": 0.5}}
        for seed, scores in figures["teacher 25"].items()
    }
    found = {aim.words: aim for aim in goals(figures, [KIND], row)}
    distance = found[f"{KIND}: distance at most 1.15 times the teacher's at 25 steps"]
    assert distance.value.value == pytest.approx(1.2)
    assert not distance.is_met
    assert found[f"{KIND}: distance at most 1 times the teacher's at 4 steps"].is_met
    recall = found[f"{KIND}: recall at least 0.8 times the teacher's at 25 steps"]
    assert recall.value.value == pytest.approx(0.8)
    assert recall.is_met
    ratio = found[f"{KIND}: distance below that of regression_real, as a ratio"]
    assert ratio.value.value == pytest.approx(0.75)
    assert ratio.is_met


# tables


def test_the_strong_solver_stands_for_the_teacher() -> None:
    samplers = (
        "teacher, 25 steps ddim, guidance 2",
        "teacher, 25 steps dpm++, guidance 2",
        "teacher, 25 steps dpm++",
    )
    drawn = tuple(
        replace(_run(TEACHER, 0, 1.0 + i, name).drawn[0]) for i, name in enumerate(samplers)
    )
    run = replace(_run(TEACHER, 0, 1.0), drawn=drawn)
    aliases = teacher_aliases([run], "dpm++", 2.0)
    assert aliases == {samplers[1]: "teacher 25"}
    assert figures_of([run], aliases)["teacher 25"][0][KIND]["frechet_distance"] == 2.0


def test_the_page_holds_what_was_measured_and_what_the_paper_says() -> None:
    runs = [_run(FULL, seed, 1.0 + seed / 10) for seed in range(3)]
    runs += [_run("init_random", seed, 3.0 + seed / 10) for seed in range(3)]
    text = page(runs, {"ladd": "no time"}, {"machine": "a test"}, {KIND: 8}, {})
    assert "- machine: a test" in text
    assert "| ADD, full | 3 | 1.10 [0.85, 1.35] | 50 % [50, 50] | 20.6 / 0.319 |" in text
    assert "| random start | 3 | 3.10 [2.85, 3.35] | 50 % [50, 50] | 293.6 / 0.065 |" in text
    claim = "a pretrained start is better than a random one"
    (line,) = [line for line in text.splitlines() if claim in line]
    assert line.endswith("| 2.00 [2.00, 2.00] | agrees |")
    assert "- ladd: no time" in text


def test_a_run_file_is_plain_json(tmp_path: Path) -> None:
    _run(FULL, 0, 0.5).save(tmp_path)
    plain = json.loads(run_path(tmp_path, FULL, 0).read_text())
    assert plain["drawn"][0]["scores"][KIND]["frechet_distance"] == 0.5
