"""Every row of the table of bad requests, against one real service.

The rows and what they must be answered with stand in `tests/bad_requests`. How long the answers
take is measured by `tests/bench/bench_bad_requests.py`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from bad_requests.sending import Answer, fault_of, send
from bad_requests.table import NUM_ROWS, TABLE
from service_process import ServiceProcess, resident_bytes, running_service

MAX_GROWTH_BYTES = 64 * 2**20
CANARY = "attacker.example"


@dataclass(frozen=True)
class Run:
    """One walk through the table."""

    service: ServiceProcess
    answers: dict[str, list[Answer]]
    growth_bytes: int


@pytest.fixture(scope="module")
def run(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The answers of one service to every row, in the table's order."""
    bundle = repo_root / "models" / "emoji"
    folder = tmp_path_factory.mktemp("service")
    # Bodies that are too large are written down once for all routes.
    with running_service(bundle, folder, max_upload_bytes=65536) as service:
        port = urlsplit(service.url).port
        assert port is not None
        before_bytes = resident_bytes(service.process.pid)
        answers = {kind: [send(row, port) for row in rows] for kind, rows in TABLE.items()}
        growth_bytes = resident_bytes(service.process.pid) - before_bytes
        yield Run(service, answers, growth_bytes)


@pytest.mark.parametrize("kind", TABLE)
def test_every_bad_request_is_refused_and_the_field_is_named(run: Run, kind: str) -> None:
    pairs = zip(TABLE[kind], run.answers[kind], strict=True)
    faults = [fault for row, answer in pairs if (fault := fault_of(row, answer))]
    assert not faults, "\n".join(faults)


def test_the_table_is_long_and_its_rows_are_refusals_with_names_of_their_own() -> None:
    assert NUM_ROWS >= 250
    for kind, rows in TABLE.items():
        repeated = [name for name, num in Counter(row.name for row in rows).items() if num > 1]
        assert not repeated, f"{kind}: {repeated}"
        assert all(400 <= row.status < 500 for row in rows)


def test_the_process_has_not_grown(run: Run) -> None:
    assert run.growth_bytes < MAX_GROWTH_BYTES


def test_no_answer_leads_to_a_host_that_the_client_named(run: Run) -> None:
    for answers in run.answers.values():
        assert not [answer for answer in answers if CANARY in answer.headers.get("location", "")]


def test_nothing_of_it_is_an_error_of_the_service(run: Run) -> None:
    log = [json.loads(line) for line in run.service.stderr_path.read_text().splitlines()]
    assert [line for line in log if line["level"] not in ("DEBUG", "INFO", "WARNING")] == []
    metrics = httpx.get(f"{run.service.url}/metrics").text
    served = [line for line in metrics.splitlines() if line.startswith("onestep_requests_total{")]
    assert served
    assert [line for line in served if 'code="5' in line or 'code="0"' in line] == []


def test_afterwards_it_draws_as_before(run: Run) -> None:
    response = httpx.post(
        f"{run.service.url}/v1/generate",
        json={"prompt": "a red heart", "seed": 1},
        headers={"accept": "image/png"},
        timeout=30,
    )
    assert response.status_code == 200, response.text
    assert response.content.startswith(b"\x89PNG")
