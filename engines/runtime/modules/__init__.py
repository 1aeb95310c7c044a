"""The stages as torch modules, built from a torch folder in the diffusers layout.

Owns what each stage computes: the graphs are traced from these modules and the torch backend runs
them, so that parity compares one definition under two runtimes. Knows nothing of ONNX.
"""

from engines.runtime.modules.autoencoder import DecodeStage, EncodeStage
from engines.runtime.modules.denoise import DenoiseStage
from engines.runtime.modules.load import (
    ModuleOptions,
    TorchStages,
    load_modules,
    load_stage,
    stage_precision,
)
from engines.runtime.modules.lora import Lora
from engines.runtime.modules.text import DualTextStage, TextStage

__all__ = [
    "DecodeStage",
    "DenoiseStage",
    "DualTextStage",
    "EncodeStage",
    "Lora",
    "ModuleOptions",
    "TextStage",
    "TorchStages",
    "load_modules",
    "load_stage",
    "stage_precision",
]
