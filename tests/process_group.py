"""What a process of a group is asked by a test.

Owns functions that can be sent to another process, which those of a test's own module cannot.
"""

from __future__ import annotations

from typing import Any

import torch
from distill_fixtures import tiny_config

from distill.training.processes import Processes


def agreements() -> dict[str, Any]:
    """Answers of one process, which depend on what the others said."""
    processes = Processes.start(tiny_config("device=cpu", "student.optimizer.batch_size=8"))
    rank = processes.rank
    gradient = torch.tensor([1.0, float("nan") if rank == 1 else 2.0])
    answers = {
        "part": list(processes.part(8)),
        "mean": processes.mean({"b": float(rank), "a": 3.0}),
        "any": processes.any(rank == 1, False),
        "of_main": processes.of_main(rank + 5.0),
        "bad": processes.are_finite([gradient]),
        "good": processes.are_finite([gradient[:1]]),
    }
    processes.end()
    return answers
