"""What a run is: frozen dataclasses, overrides, JSON.

Owns every number that a training can be told. The saved config.json of a run folder is one
`RunConfig`, so that a run can be read, repeated and resumed. Knows neither torch nor disk.
"""

from distill.config.errors import ConfigError
from distill.config.guard import AlarmConfig, GuardConfig, TrackConfig
from distill.config.overrides import override
from distill.config.run import RunConfig
from distill.config.scale import ScaleConfig
from distill.config.sections import (
    AutoencoderConfig,
    DataConfig,
    OptimizerConfig,
    TeacherConfig,
    TextConfig,
    UnetConfig,
)
from distill.config.student import DiscriminatorConfig, DistillWeight, LoraConfig, StudentConfig

__all__ = [
    "AlarmConfig",
    "AutoencoderConfig",
    "ConfigError",
    "DataConfig",
    "DiscriminatorConfig",
    "DistillWeight",
    "GuardConfig",
    "LoraConfig",
    "OptimizerConfig",
    "RunConfig",
    "ScaleConfig",
    "StudentConfig",
    "TeacherConfig",
    "TextConfig",
    "TrackConfig",
    "UnetConfig",
    "override",
]
