"""A Prometheus of the test's own, with the project's rules in windows of seconds.

Owns its start, its end by process id, and its answers. Thresholds and volumes of the rules stay;
only the time that a fault must last is shortened.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

_START_S = 20
_SHORT = {
    "5m": "8s",
    "10m": "15s",
    "15m": "15s",
    "30m": "10s",
    "1h": "12s",
    "6h": "15s",
    "3d": "20s",
}


def shortened(rules: str) -> str:
    """Rules whose windows and waits last seconds."""
    rules = re.sub(r"\[(\d+[smhd])\]", lambda found: f"[{_SHORT[found[1]]}]", rules)
    # Whatever a rule waits for, it waits for two evaluations here.
    return re.sub(r"(?m)^( +for:) (?!0m)\w+$", r"\1 1s", rules)


class PrometheusServer:
    """Scrapes every second what `targets` lists, and evaluates the rules as often."""

    def __init__(self, folder: Path, rules: list[Path]) -> None:
        program = shutil.which("prometheus")
        if program is None:
            pytest.skip("prometheus is not installed (Debian: prometheus)")
        folder.mkdir(parents=True, exist_ok=True)
        self.targets = folder / "targets.json"
        self.targets.write_text("[]")
        for path in rules:
            (folder / path.name).write_text(shortened(path.read_text()))
        configuration = {
            "global": {
                "scrape_interval": "1s",
                "scrape_timeout": "1s",
                "evaluation_interval": "1s",
            },
            "rule_files": [path.name for path in rules],
            "scrape_configs": [
                {"job_name": "onestep", "file_sd_configs": [{"files": [self.targets.name]}]}
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._log = folder / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(program, f"--config.file={folder / 'prometheus.yml'}"),
                    f"--storage.tsdb.path={folder / 'tsdb'}",
                    f"--web.listen-address={self._address}",
                    "--enable-feature=exemplar-storage",
                ],
                stdout=log,
                stderr=log,
            )
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        until_s = time.monotonic() + _START_S
        while time.monotonic() < until_s and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=1):
                    return
            except OSError:
                time.sleep(0.05)
        raise AssertionError(self._log.read_text()[-4000:])

    def _get(self, path: str, **parameters: object) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://{self._address}/api/v1/{path}?{query}") as answer:
            return json.loads(answer.read())["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression is now."""
        found: list[dict[str, Any]] = self._get("query", query=expression)["result"]
        return found

    def query_range(
        self, expression: str, begin_s: float, end_s: float, step_s: float = 1.0
    ) -> list[dict[str, Any]]:
        """The series that an expression was over time."""
        found: list[dict[str, Any]] = self._get(
            "query_range", query=expression, start=begin_s, end=end_s, step=step_s
        )["result"]
        return found

    def metric_names(self) -> set[str]:
        """Every name that was ever scraped or recorded."""
        return set(self._get("label/__name__/values"))

    def fired(self, since_s: float, but_for: str = "") -> set[str]:
        """Alerts that have fired since then, but for those of one objective."""
        window_s = math.ceil(time.time() - since_s)
        firing = self.query(
            f'max_over_time(ALERTS{{alertstate="firing", slo!="{but_for or "none"}"}}[{window_s}s])'
        )
        return {series["metric"]["alertname"] for series in firing}

    def wait_for_alerts(self, names: set[str], timeout_s: float) -> None:
        """Return once these have fired, or the time is over."""
        begin_s, until_s = time.time(), time.monotonic() + timeout_s
        while time.monotonic() < until_s and not names <= self.fired(begin_s - 10):
            time.sleep(0.3)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(10)
