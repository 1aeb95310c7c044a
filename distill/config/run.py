"""One run: every section together."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from distill.config.errors import ConfigError
from distill.config.guard import GuardConfig, TrackConfig, guard_rules
from distill.config.overrides import as_plain, build, flat
from distill.config.rules import lora_rules, method_rules, network_rules, schedule_rules
from distill.config.scale import ScaleConfig, scale_rules
from distill.config.sections import (
    AutoencoderConfig,
    DataConfig,
    TeacherConfig,
    TextConfig,
    UnetConfig,
)
from distill.config.student import StudentConfig

# Who watches, where it runs and what it is called decide nothing of what is learned.
_SHAPES_NOTHING = frozenset(
    (
        "name",
        "description",
        "license",
        "attribution",
        "device",
        "num_threads",
        "compile",
        "snapshot_every_s",
        "report_every",
        "sample_every",
        "guard",
        "track",
        "scale",
    )
)
# The first stage that a section has a part in; every other field has a part in all of them.
_FIRST_STAGE = {"text": "teacher", "unet": "teacher", "teacher": "teacher", "student": "student"}
_STAGES = ("autoencoder", "teacher", "student")


@dataclass(frozen=True)
class RunConfig:
    """One model from captioned pictures to a student.

    Attributes:
        description: one line of what the model draws.
        license: of the model, as the hub names licences.
        attribution: whose pictures it was trained on, for its provenance.
    """

    name: str
    description: str = ""
    license: str = ""
    attribution: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    text: TextConfig = field(default_factory=TextConfig)
    unet: UnetConfig = field(default_factory=UnetConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    seed: int = 0
    device: str = "auto"
    num_threads: int = 0
    bf16: bool = True
    compile: bool = False
    snapshot_every_s: float = 120.0
    report_every: int = 25
    sample_every: int = 500

    def __post_init__(self) -> None:
        """Refuse values that cannot work together, before anything is trained."""
        for is_wrong, message in chain(
            schedule_rules(self),
            method_rules(self),
            lora_rules(self),
            network_rules(self),
            scale_rules(self),
            guard_rules(self.guard),
        ):
            if is_wrong:
                raise ConfigError(message)

    @property
    def unet_downscale(self) -> int:
        """Latent cells per cell of the UNet's deepest level along one axis."""
        return int(2 ** (len(self.unet.block_out_channels) - 1))

    def to_json(self) -> str:
        """Return the text of config.json."""
        return json.dumps(as_plain(self), indent=2) + "\n"

    def that_shapes(self, stage: str) -> dict[str, Any]:
        """Fields that decide a stage's result, by dotted name; the others may change on resuming.

        The stage's own number of iterations is not among them: a run may be made longer.
        """
        later = _STAGES[_STAGES.index(stage) + 1 :]
        shaping = {
            name: value
            for name, value in as_plain(self).items()
            if name not in _SHAPES_NOTHING and _FIRST_STAGE.get(name) not in later
        }
        fields = flat(shaping)
        del fields[f"{stage}.optimizer.iterations"]
        return fields

    @classmethod
    def from_json(cls, text: str) -> RunConfig:
        """Read config.json back."""
        config: RunConfig = build(cls, json.loads(text))
        return config
