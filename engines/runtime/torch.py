"""The reference backend: the torch modules themselves, run eagerly on the CPU.

Owns only the bridge between numpy and torch. Slow and exact; `check` compares the others with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from engines.errors import BackendError
from engines.runtime.base import RuntimeOptions, Stages
from engines.runtime.modules import load_modules
from engines.spec import ModelSpec


class TorchStage:
    """One module, called without gradients."""

    def __init__(self, module: torch.nn.Module) -> None:
        """Wrap a module in evaluation mode."""
        self._module = module

    def __call__(self, *inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Run the module on arrays in the order of `stage_inputs`."""
        try:
            with torch.inference_mode():
                output: Any = self._module(*(torch.from_numpy(i) for i in inputs))
        except Exception as error:  # torch raises whatever the failing operator raises
            reason = str(error).strip().partition("\n")[0]
            raise BackendError(
                f"torch failed in {type(self._module).__name__}: {reason}"
            ) from error
        outputs = output if isinstance(output, tuple) else (output,)
        return tuple(array.numpy() for array in outputs)


def load_stages(folder: Path, spec: ModelSpec, options: RuntimeOptions) -> Stages:
    """Load a torch folder; `num_threads` holds for the whole process, as torch has it."""
    if options.precision not in (None, "float32"):
        raise BackendError(f"the torch backend computes in float32 alone, not {options.precision}")
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    modules = load_modules(Path(folder), spec)
    return Stages(
        text=TorchStage(modules.text),
        denoise=TorchStage(modules.denoise),
        decode=TorchStage(modules.decode),
        encode=None if modules.encode is None else TorchStage(modules.encode),
    )
