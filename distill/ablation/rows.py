"""The rows of the ablation: what each changes, and what the paper found for it.

Owns the names, the overrides, the paper's figures (arXiv:2311.17042, table 1) and the equal budget.
Knows nothing of networks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from distill.config import ConfigError, RunConfig, override

TEACHER = "teacher"
FULL = "full"
VISION = "features_vision"
_TERMS = "student.lambda_"
_DISC = "student.discriminator."


@dataclass(frozen=True)
class Paper:
    """What the paper reports: COCO2017, 5,000 pictures of 512 px, one step."""

    fid: float
    clip_score: float


@dataclass(frozen=True)
class Row:
    """One student, as a change of the full one.

    Attributes:
        name: on the command line and in file names.
        topic: which question it belongs to.
        words: in tables.
        assignments: `section.field=value` overrides.
        paper: its figures there, where it has the row.
        num_steps: numbers of steps that the finished student is judged at.
        is_through_vision: whether its heads look through a vision model, as the paper's do.
    """

    name: str
    topic: str
    words: str
    assignments: tuple[str, ...] = ()
    paper: Paper | None = None
    num_steps: tuple[int, ...] = (1,)
    is_through_vision: bool = False


@dataclass(frozen=True)
class Plan:
    """What will be trained.

    Attributes:
        configs: of each row, by name, in order.
        rows: the same rows.
        skipped: reasons by name.
        has_teacher: whether the teacher itself is judged, too.
    """

    configs: dict[str, RunConfig]
    rows: dict[str, Row]
    skipped: dict[str, str]
    has_teacher: bool


def _weighted(weight: str, words: str, paper: Paper | None) -> Row:
    assignments = (f"student.distill_weight={weight}",)
    return Row(f"weight_{weight}", "losses", f"both, {words} weights", assignments, paper)


def _conditioned(condition: str, words: str, paper: Paper) -> Row:
    assignments = (f"{_DISC}condition={condition}",)
    return Row(f"condition_{condition}", "condition", f"heads told {words}", assignments, paper)


def _stepped(num_steps: int, paper: Paper) -> Row:
    assignments = (f"student.teacher_steps={num_steps}",)
    return Row(
        f"teacher_steps_{num_steps}", "target", f"target in {num_steps} steps", assignments, paper
    )


_ALONE = (f"{_TERMS}adversarial=0", f"{_TERMS}distill=0", f"{_TERMS}reconstruct=1")
_LADD = (
    "student.method=ladd",
    f"{_TERMS}distill=0",
    "student.adversarial_share=null",
    f"{_DISC}condition=text",
)

ROWS: tuple[Row, ...] = (
    Row(FULL, "full", "ADD, full", (), Paper(20.6, 0.319), (1, 2, 4)),
    Row(
        "adversarial_only",
        "losses",
        "adversary only",
        (f"{_TERMS}distill=0",),
        Paper(20.8, 0.315),
    ),
    Row(
        "distill_only",
        "losses",
        "distillation only",
        (f"{_TERMS}adversarial=0",),
        Paper(315.6, 0.076),
    ),
    Row("regression_real", "baselines", "regression on real pictures", _ALONE),
    Row(
        "regression_teacher",
        "baselines",
        "regression on the teacher's pictures",
        ("student.method=regression", "student.teacher_steps=10"),
    ),
    Row(
        "init_random",
        "initialisation",
        "random start",
        ("student.initialise=random",),
        Paper(293.6, 0.065),
    ),
    Row("add_regression", "baselines", "ADD with regression", (f"{_TERMS}reconstruct=1",)),
    _conditioned("none", "nothing", Paper(21.2, 0.302)),
    _conditioned("text", "the text", Paper(21.2, 0.307)),
    _conditioned("image", "the picture", Paper(21.1, 0.316)),
    Row("features_random", "features", "random features", (f"{_DISC}features=random",)),
    Row(
        VISION,
        "features",
        "a vision model's features",
        paper=Paper(20.6, 0.319),
        is_through_vision=True,
    ),
    Row(
        "vision_adversarial_only",
        "features",
        "a vision model's features, adversary only",
        (f"{_TERMS}distill=0",),
        Paper(20.8, 0.315),
        is_through_vision=True,
    ),
    _weighted("none", "equal", None),
    _weighted("sds", "SDS", Paper(22.3, 0.325)),
    _weighted("nfsd", "NFSD", Paper(21.8, 0.327)),
    _stepped(2, Paper(20.8, 0.321)),
    _stepped(4, Paper(20.3, 0.317)),
    Row("ladd", "methods", "LADD", _LADD),
    Row("dmd2", "methods", "DMD2", ("student.method=dmd2", "student.distill_weight=none")),
    Row("share_quarter", "balance", "adversary a quarter as strong"),
    Row("share_fourfold", "balance", "adversary four times as strong"),
    Row("fixed_weights", "balance", "1 : 2.5, not held", ("student.adversarial_share=null",)),
)
_SHARES = {"share_quarter": 0.25, "share_fourfold": 4.0}
ROW_NAMES = (*(row.name for row in ROWS), TEACHER)


def plan(base: RunConfig, names: Sequence[str] = (), vision_model: str | None = None) -> Plan:
    """Choose rows and build their configurations.

    Args:
        base: of the full row.
        names: of rows; empty takes all.
        vision_model: folder of the vision model whose features some rows use.

    Raises:
        ConfigError: a name is unknown, or two rows would see different numbers of pictures.
    """
    unknown = sorted(set(names) - set(ROW_NAMES))
    if unknown:
        raise ConfigError(f"--rows: no row {', '.join(unknown)}; rows: {', '.join(ROW_NAMES)}")
    configs: dict[str, RunConfig] = {}
    rows: dict[str, Row] = {}
    skipped: dict[str, str] = {}
    for row in ROWS:
        if names and row.name not in names:
            continue
        try:
            configs[row.name] = override(base, _assignments(row, base, vision_model))
            rows[row.name] = row
        except ConfigError as error:
            skipped[row.name] = str(error)
    require_equal_budgets(configs)
    return Plan(configs, rows, skipped, not names or TEACHER in names)


def _assignments(row: Row, base: RunConfig, vision_model: str | None) -> tuple[str, ...]:
    if row.name in _SHARES:
        share = base.student.adversarial_share
        if share is None:
            raise ConfigError("the full row holds no share (student.adversarial_share)")
        return (f"student.adversarial_share={share * _SHARES[row.name]}",)
    if row.is_through_vision:
        if vision_model is None:
            raise ConfigError("no vision model: name a transformers folder with --vision")
        through = (f"{_DISC}features=vision", f"{_DISC}vision_model={json.dumps(vision_model)}")
        return (*row.assignments, *through)
    return row.assignments


def num_pictures(config: RunConfig) -> int:
    """How many pictures the student is asked for in a whole training."""
    return config.student.optimizer.iterations * config.student.optimizer.batch_size


def require_equal_budgets(configs: dict[str, RunConfig]) -> None:
    """Check that a row is never better for having been trained on more.

    Raises:
        ConfigError: the rows differ in how many pictures their student makes.
    """
    budgets = {name: num_pictures(config) for name, config in configs.items()}
    if len(set(budgets.values())) > 1:
        words = ", ".join(f"{name} {num}" for name, num in budgets.items())
        raise ConfigError(f"the rows must make equally many pictures: {words}")
