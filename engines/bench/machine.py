"""What a figure depends on besides the code: machine, versions, load; and peak memory.

Owns what is read from the operating system. Knows nothing of pipelines.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PACKAGES = (
    "onestep",
    "numpy",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt-cu13",
    "tensorrt-rtx-cu13",
    "torch",
    "diffusers",
    "transformers",
    "tokenizers",
)


def describe_machine(num_threads: int | None) -> dict[str, Any]:
    """Processor, cores, threads, system and the versions of what is installed, JSON-ready.

    Args:
        num_threads: as the runtimes were told; None leaves the choice to them.
    """
    description: dict[str, Any] = {
        "cpu": _cpu_model(),
        "num_cores": num_cores(),
        "num_threads": num_threads,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": dict(_versions()),
    }
    cuda = _cuda()
    if cuda is not None:
        description["gpu"] = cuda.get_device_name()
    return description


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_average() -> list[float]:
    """Runnable processes on the machine over 1, 5 and 15 minutes."""
    return [round(load, 2) for load in os.getloadavg()]


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def _cuda() -> Any | None:
    """torch.cuda, where something has loaded torch and a GPU is in use."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


class PeakMemory:
    """The highest memory use between `reset` and `read`."""

    def __init__(self) -> None:
        """Start watching."""
        self._is_host_reset = False
        self.reset()

    def reset(self) -> None:
        """Forget what was used before."""
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self._is_host_reset = True
        except OSError:  # not Linux, or a container that forbids it
            self._is_host_reset = False
        cuda = _cuda()
        if cuda is not None:
            cuda.reset_peak_memory_stats()

    def read(self) -> dict[str, Any]:
        """Return JSON-ready bytes.

        Returns:
            rss: high water of the process's resident memory, models included.
            rss_since: "reset", or "start" where the system cannot forget earlier use.
            cuda: high water of torch's own allocations, or None without CUDA.
        """
        since = "reset" if self._is_host_reset else "start"
        rss = _high_water_bytes() if self._is_host_reset else None
        if rss is None:
            rss, since = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "start"
            if sys.platform == "darwin":  # counts in bytes, not in kibibytes
                rss //= 1024
        cuda = _cuda()
        return {
            "rss": rss,
            "rss_since": since,
            "cuda": cuda.max_memory_allocated() if cuda is not None else None,
        }


def _high_water_bytes() -> int | None:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
