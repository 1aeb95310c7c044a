"""Every row of every module, by kind."""

from __future__ import annotations

from bad_requests import fields, jobs, paths, pictures, texts, wire
from bad_requests.row import BadRequest

TABLE: dict[str, list[BadRequest]] = {
    **fields.ROWS,
    **texts.ROWS,
    **paths.ROWS,
    **pictures.ROWS,
    **jobs.ROWS,
    **wire.ROWS,
}
NUM_ROWS = sum(map(len, TABLE.values()))
