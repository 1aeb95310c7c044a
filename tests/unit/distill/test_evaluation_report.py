"""The file of figures, what may be compared, the tables, the curves and the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from distill.__main__ import main
from distill.config import ConfigError
from distill.config.overrides import as_plain
from distill.evaluation.curves import chart_sheet, duration_s, read_metrics, thinned, ticks
from distill.evaluation.differences import changed_fields, difference_table, nearest_preset
from distill.evaluation.intervals import Estimate
from distill.evaluation.networks import NetworkCard
from distill.evaluation.report import comparison_table, reference_teacher, write_report
from distill.evaluation.results import (
    EVALUATION_FILE,
    Evaluation,
    SamplerFacts,
    Score,
    SetFacts,
    refuse_to_mix,
)
from distill.evaluation.tables import Table, cell, score_tables
from distill.grid import labelled_rows
from distill.presets import preset

CARD = NetworkCard("squeezenet", "ab" * 32, "128 px, bicubic", "fire9")
SAMPLERS = [
    SamplerFacts("student, 1 step", "student", 1, 1, "student", 1.0, 20.0),
    SamplerFacts("teacher, 8 steps ddim", "teacher", 8, 16, "ddim", 2.0, 150.0),
    SamplerFacts("teacher, 25 steps ddim", "teacher", 25, 50, "ddim", 2.0, 400.0),
    SamplerFacts("teacher, 25 steps dpm++", "teacher", 25, 50, "dpm++", 2.0, 400.0),
    SamplerFacts("teacher, 50 steps ddim", "teacher", 50, 100, "ddim", 2.0, 800.0),
]
DISTANCES = [0.23, 0.5, 0.25, 0.20, 0.1]


def _evaluation(run: str = "mine") -> Evaluation:
    scores = [
        Score(
            sampler.name,
            "with style",
            "squeezenet",
            {
                "frechet_distance": Estimate(distance, distance - 0.05, distance + 0.05),
                "recall": Estimate(0.45 if sampler.model == "student" else 0.5, 0.4, 0.6),
                "top1": Estimate(0.9),
            },
            {"Food": 0.875},
        )
        for sampler, distance in zip(SAMPLERS, DISTANCES, strict=True)
    ]
    facts = SetFacts("with style", 100, 100, 120, "0123456789abcdef")
    return Evaluation(run, {"device": "cpu"}, {"squeezenet": CARD}, [facts], SAMPLERS, scores)


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    found = _evaluation()
    found.save(tmp_path)
    assert Evaluation.load(tmp_path) == found
    assert json.loads((tmp_path / EVALUATION_FILE).read_text())["schema"] == 2
    assert [path.name for path in tmp_path.iterdir()] == [EVALUATION_FILE]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '[{"sampler": "student, 1 step"}]', '{"schema": 1}', '{"schema": 2}']
)
def test_a_damaged_or_older_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / EVALUATION_FILE).write_text(content)
    with pytest.raises(ConfigError, match=r"evaluation\.json is damaged or older"):
        Evaluation.load(tmp_path)


def test_a_run_that_was_not_evaluated_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run `onestep-distill evaluate` first"):
        Evaluation.load(tmp_path)


def test_equal_questions_may_stand_in_one_table() -> None:
    (table,) = score_tables([_evaluation("a"), _evaluation("b")])
    assert [row[0] for row in table.rows[:5]] == [f"a: {s.name}" for s in SAMPLERS]
    assert len(table.rows) == 10


def test_another_number_of_pictures_is_never_compared() -> None:
    other = _evaluation("other")
    other = replace(other, sets=[replace(other.sets[0], num_pictures=50)])
    with pytest.raises(ConfigError, match="is 100 pictures against 120 real ones in the first, 50"):
        score_tables([_evaluation(), other])


def test_another_number_of_real_pictures_is_never_compared() -> None:
    other = _evaluation("other")
    other = replace(other, sets=[replace(other.sets[0], num_real=119)])
    with pytest.raises(ConfigError, match="mine and other cannot be compared"):
        score_tables([_evaluation(), other])


@pytest.mark.parametrize("change", [{"weights_sha256": "cd" * 32}, {"resize": "64 px"}])
def test_another_network_is_never_compared(change: dict[str, str]) -> None:
    other = replace(_evaluation("other"), judges={"squeezenet": replace(CARD, **change)})
    with pytest.raises(ConfigError, match="another squeezenet judged"):
        score_tables([_evaluation(), other])


def test_other_questions_and_other_judges_are_never_compared() -> None:
    first = _evaluation()
    asked = replace(first, sets=[replace(first.sets[0], fingerprint="f" * 16)])
    with pytest.raises(ConfigError, match='"with style" asks other prompts or pictures'):
        refuse_to_mix([first, asked])
    with pytest.raises(ConfigError, match="no network judged both"):
        refuse_to_mix([first, replace(first, judges={"inception": CARD})])
    with pytest.raises(ConfigError, match="no kind of prompts in common"):
        refuse_to_mix([first, replace(first, sets=[replace(first.sets[0], kind="captions")])])


def test_tables_say_what_was_counted_and_how_sure_it_is() -> None:
    (table,) = score_tables([_evaluation()])
    assert "100 pictures of 100 prompts against 120 real ones" in table.caption
    assert table.headings == ("sampler", "FD ↓", "recall ↑", "top 1 ↑")
    assert table.rows[0] == ("student, 1 step", "0.23 [0.18, 0.28]", "45 % [40, 60]", "90 %")
    assert "| student, 1 step | 0.23 [0.18, 0.28] |" in table.markdown()
    assert "<td>0.23<br><small>[0.18, 0.28]</small></td>" in table.html()
    assert cell(None, is_share=True, has_interval=True) == "–"
    assert cell(Estimate(0.0123), is_share=False, has_interval=True) == "0.012"


def test_inception_has_the_names_of_the_literature() -> None:
    found = _evaluation()
    scores = [replace(score, judge="inception") for score in found.scores]
    card = replace(CARD, name="inception")
    (table,) = score_tables([replace(found, judges={"inception": card}, scores=scores)])
    assert table.headings[1] == "FID ↓"


def test_cells_cannot_break_the_page() -> None:
    table = Table("a <b>", ("x",), (("<script>|",),))
    assert "<script>" not in table.html()
    assert "a &lt;b&gt;" in table.html()
    assert "| <script>/ |" in table.markdown()


def test_the_teacher_of_reference_is_the_better_solver_at_25_steps() -> None:
    found = _evaluation()
    best = reference_teacher(found, "with style", "squeezenet")
    assert best is not None and best.name == "teacher, 25 steps dpm++"
    (row,) = comparison_table(found).rows
    assert row[1:5] == ("student, 1 step", "teacher, 25 steps dpm++", "1.15", "0.90")
    few = replace(found, samplers=SAMPLERS[:2])
    best = reference_teacher(few, "with style", "squeezenet")
    assert best is not None and best.num_steps == 8
    assert reference_teacher(replace(found, samplers=SAMPLERS[:1]), "with style", "x") is None


def test_metrics_are_read_as_far_as_they_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"iteration": 1, "time_s": 100.0, "loss": 2.0}\n'
        '{"iteration": 2, "time_s": 103.5, "loss": NaN, "accuracy": 0.5, "word": "x"}\n'
        '{"iteration": 3, "time_s": 107.0, "loss": 1.0}\n{"iterat'
    )
    assert read_metrics(path) == {"loss": [(1.0, 2.0), (3.0, 1.0)], "accuracy": [(2.0, 0.5)]}
    assert duration_s(path) == 7.0
    assert read_metrics(tmp_path / "gone.jsonl") == {}


def test_long_curves_are_thinned_by_means() -> None:
    points = [(float(i), float(i % 2)) for i in range(1000)]
    few = thinned(points, 100)
    assert len(few) == 100
    assert few[0] == (4.5, 0.5)
    assert thinned(points[:5], 100) == points[:5]


def test_ticks_are_round_numbers_inside() -> None:
    assert list(ticks(0.0, 1.0)) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert list(ticks(7.78, 8.02)) == pytest.approx([7.8, 7.85, 7.9, 7.95, 8.0])


def test_the_chart_draws_what_it_is_given() -> None:
    svg = chart_sheet({"loss & more": [(0.0, 4.0), (10.0, 2.0)], "r1": [(0.0, 1.0), (5.0, 1e4)]})
    tree = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    texts = [node.text for node in tree.iter(f"{space}text")]
    assert "loss & more" in texts
    assert "r1 (log)" in texts
    first, second = (
        [tuple(map(float, p.split(","))) for p in (node.get("points") or "").split()]
        for node in tree.iter(f"{space}polyline")
    )
    # Left to right, from the top of the chart to its bottom, and the other way round.
    assert first[0][0] < first[1][0] and first[0][1] < first[1][1]
    assert second[0][1] > second[1][1]


def test_a_flat_curve_has_a_chart() -> None:
    assert "<polyline" in chart_sheet({"skipped": [(1.0, 0.0), (2.0, 0.0)]})


def test_the_nearest_preset_and_what_differs_from_it() -> None:
    plain = as_plain(preset("emoji_cpu"))
    assert nearest_preset(plain) == "emoji_cpu"
    assert difference_table(plain, "emoji_cpu").rows == ()
    plain["student"]["optimizer"]["lr"] = 1e-5
    plain["data"]["captions_name_concept"] = True  # a field of another version
    del plain["seed"]
    changed = changed_fields(plain, as_plain(preset("emoji_cpu")))
    assert changed == {
        "student.optimizer.lr": ("0.0003", "1e-05"),
        "data.captions_name_concept": ("–", "true"),
        "seed": ("0", "–"),
    }
    long = difference_table(plain, "emoji_gpu").rows
    concepts = next(row for row in long if row[0] == "data.concepts")
    assert concepts[2].endswith("(151 entries)") and len(concepts[2]) < 70


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as the commands leave it, without its models."""
    run = tmp_path / "run"
    for stage in ("teacher", "student"):
        (run / stage / "samples").mkdir(parents=True)
        (run / stage / "config.json").write_text(preset("shapes_tiny").to_json())
        lines = [f'{{"iteration": {i}, "time_s": {60 * i}, "loss": {1 / i}}}' for i in range(1, 9)]
        (run / stage / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    Image.new("RGB", (8, 8), "red").save(run / "student" / "samples" / "0000008.png")
    alarm = '{"iteration": 5, "time_s": 1, "alarm": "collapse", "words": "the <fakes> are alike"}\n'
    (run / "student" / "alarms.jsonl").write_text(alarm)
    return run


def test_a_run_that_was_not_evaluated_has_a_report(run: Path) -> None:
    markdown, page = (path.read_text(encoding="utf-8") for path in write_report(run))
    assert "Not evaluated yet" in markdown
    assert "student: 8 iterations in 7 minutes" in markdown
    assert "alarm at iteration 5: alarm collapse, words the <fakes> are alike" in markdown
    assert "the &lt;fakes&gt; are alike" in page
    assert "nothing beside the preset shapes_tiny" in markdown
    assert "![student: the last sheet of samples](student/samples/0000008.png)" in markdown
    assert (run / "report" / "student.svg").is_file()
    assert "report/student.svg" not in page  # it travels inside
    assert page.count("data:image/") == 3


def test_the_page_holds_the_figures_and_names_every_judge(run: Path) -> None:
    _evaluation().save(run)
    (run / "evaluation").mkdir()
    Image.new("RGB", (8, 8)).save(run / "evaluation" / "with-style.webp")
    markdown, page = (path.read_text(encoding="utf-8") for path in write_report(run))
    for words in ("0.23 [0.18, 0.28]", "128 px, bicubic", "ab" * 8, "teacher, 25 steps dpm++"):
        assert words in markdown
    assert "Top 1 by group" in markdown and "88 %" in markdown
    assert "data:image/webp;base64," in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_the_command_reports_and_refuses(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.split() == [str(run / "report.md"), str(run / "report.html")]
    assert main(["report", str(tmp_path / "gone")]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert main(["report", str(run), "--preset", "none"]) == 2
    assert "--preset: choose one of" in capsys.readouterr().err
    _evaluation("one").save(run)
    other = tmp_path / "other"
    other.mkdir()
    replace(_evaluation("two"), judges={"dinov2": CARD}).save(other)
    assert main(["report", str(run), "--compare", str(other)]) == 2
    assert "one and two cannot be compared" in capsys.readouterr().err


def test_sheets_name_their_rows_and_columns() -> None:
    white = np.full((3, 32, 32, 3), 255, np.uint8)
    page = np.asarray(labelled_rows(("a cat", "a very long prompt indeed", ""), {"student": white}))
    plain = np.asarray(labelled_rows(("", "", ""), {" ": white}))
    assert page.shape[0] > plain.shape[0]  # the long prompt takes more lines
    assert (page[:, -100:] < 128).any()  # words above the columns
    assert (page[-20:, :60] < 128).any()  # the name beside the row
    assert not (plain < 128).any()
