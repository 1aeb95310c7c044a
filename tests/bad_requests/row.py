"""One bad request and the answer that it must get.

Owns how a row is written down: as parts, as a value of one JSON field, or as bytes on the wire.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from dataclasses import field as made_by

GENERATE = "/v1/generate"
IMAGES = "/v1/images/generations"
JOBS = "/v1/jobs"
_PROMPT = '"prompt": "a red heart"'


@dataclass(frozen=True)
class BadRequest:
    """A request and its answer.

    Attributes:
        name: unique within its kind.
        field: what the answer must name: `field` of a problem document, `param` of OpenAI's
            envelope; None where no single field is at fault.
        wire: the whole request as it stands on the wire; otherwise it is composed from the parts.
        before: a good request that is sent and answered first, on the same connection.
        has_document: False where the answer comes from another protocol's library.
    """

    name: str
    status: int = 400
    field: str | None = None
    method: str = "POST"
    path: str = GENERATE
    headers: Mapping[str, str] = made_by(default_factory=dict)
    body: bytes = b""
    wire: bytes | None = None
    before: bytes = b""
    has_document: bool = True

    def on_the_wire(self) -> bytes:
        """Every byte that is sent."""
        if self.wire is not None:
            return self.wire
        own = {"Host": "localhost"}
        if self.body or self.method in ("POST", "PUT", "PATCH"):
            own["Content-Length"] = str(len(self.body))
        lines = [f"{self.method} {self.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in {**own, **self.headers}.items()]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + self.body


def json_rows(path: str, bodies: Mapping[str, str | bytes]) -> list[BadRequest]:
    """Bodies by name, none of which has one field at fault."""
    return [
        BadRequest(name, path=path, body=body if isinstance(body, bytes) else body.encode())
        for name, body in bodies.items()
    ]


def field_rows(path: str, name: str, values: Iterable[str]) -> list[BadRequest]:
    """One field with each of these values, in JSON's spelling, beside a good prompt."""
    rows = []
    for value in values:
        others = "" if name == "prompt" else f"{_PROMPT}, "
        shown = value if len(value) <= 40 else f"{value[:20]}... of {len(value)}"
        rows.append(
            BadRequest(
                f"{name}: {shown}",
                path=path,
                field=name,
                body=f"{{{others}{json.dumps(name)}: {value}}}".encode("utf-8", "surrogatepass"),
            )
        )
    return rows


def unknown_field_rows(path: str, names: Iterable[str]) -> list[BadRequest]:
    """A field that the request does not have; the answer names no more than its beginning."""
    return [
        replace(row, name=f"unknown: {name[:40]!a} of {len(name)}", field=name[:64])
        for name in names
        for row in field_rows(path, name, ["1"])
    ]
