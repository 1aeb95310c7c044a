"""The playground: `/` and the static files under `/playground/`.

Owns which files the page is made of and how they are typed, cached and fenced in by a
Content-Security-Policy. Knows nothing of models or jobs: the page calls the public API itself.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType

from fastapi import APIRouter, Request, Response

from service.errors import NotFound

INDEX_FILE = "index.html"

# The listed types are all that may leave the folder: a stray file in it is never served.
MEDIA_TYPES = MappingProxyType(
    {
        "html": "text/html; charset=utf-8",
        "css": "text/css; charset=utf-8",
        "js": "text/javascript; charset=utf-8",
        "svg": "image/svg+xml",
    }
)

# Pictures reach the <img> as blob: URLs; everything else comes from this origin, nothing inline.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)

# The camera is a source of pictures; of a browser's other senses the page uses none.
PERMISSIONS_POLICY = "camera=(self), microphone=(), geolocation=(), display-capture=()"

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Asset:
    """One file of the page, held in memory: it is small and never changes while serving."""

    content: bytes
    media_type: str
    etag: str


def load_assets() -> dict[str, Asset]:
    """Read the page's files out of the installed package, keyed by file name."""
    assets = {}
    for entry in files("service").joinpath("playground").iterdir():
        media_type = MEDIA_TYPES.get(entry.name.rpartition(".")[2])
        if media_type is not None:
            content = entry.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            assets[entry.name] = Asset(content, media_type, etag)
    return assets


ASSETS = MappingProxyType(load_assets())


@router.api_route("/", methods=["GET", "HEAD"])
async def read_index(request: Request) -> Response:
    """The page itself."""
    return _answer(INDEX_FILE, request)


@router.api_route("/playground/{name}", methods=["GET", "HEAD"])
async def read_asset(name: str, request: Request) -> Response:
    """One of the page's style sheets, scripts or icons."""
    return _answer(name, request)


def _answer(name: str, request: Request) -> Response:
    asset = ASSETS.get(name)
    if asset is None:
        raise NotFound("the playground has no such file")
    headers = {
        # File names carry no digest, so a browser asks each time and mostly hears 304.
        "cache-control": "no-cache",
        "etag": asset.etag,
        "content-security-policy": CONTENT_SECURITY_POLICY,
        "permissions-policy": PERMISSIONS_POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
    if _is_known(asset.etag, request.headers.get("if-none-match")):
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)


def _is_known(etag: str, if_none_match: str | None) -> bool:
    """Weak comparison of RFC 9110, section 13.1.2: proxies that compress mark tags with W/."""
    if if_none_match is None:
        return False
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return "*" in tags or etag in tags
