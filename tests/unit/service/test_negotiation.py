"""Which media type a client wants most."""

from __future__ import annotations

import pytest

from service.routes.generate import preferred_media_types


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", []),
        ("image/png", ["image/png"]),
        ("IMAGE/PNG", ["image/png"]),
        ("application/json, image/*;q=0.5", ["application/json", "image/*"]),
        ("application/json;q=0.5, image/*", ["image/*", "application/json"]),
        ("image/webp;q=0, */*", ["*/*"]),
        ("image/webp;q=x, */*", ["*/*"]),
        ("text/html;level=1;q=0.3,,image/jpeg", ["image/jpeg", "text/html"]),
    ],
)
def test_ranges_are_sorted_by_quality(accept: str, expected: list[str]) -> None:
    assert preferred_media_types(accept) == expected
