"""The page /docs: Swagger UI over /openapi.json, without a word to any other host.

Owns the page, which of the package's files it is made of, and how the document says that a key may
be needed. The document itself is FastAPI's and is served with or without the page.
"""

from __future__ import annotations

from importlib.resources import files
from types import MappingProxyType
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import FileResponse

from service.errors import NotFound

router = APIRouter(include_in_schema=False)

_MEDIA_TYPES = MappingProxyType(
    {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
)
# The page starts itself with an inline script; it shows the document of this service and no input.
_CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' 'unsafe-inline'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


@router.get("/docs")
async def read_docs(request: Request) -> Response:
    """The page."""
    root = request.scope.get("root_path", "")
    page = get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title="onestep",
        swagger_js_url=f"{root}/docs/swagger-ui-bundle.js",
        swagger_css_url=f"{root}/docs/swagger-ui.css",
        swagger_favicon_url=f"{root}/playground/icon.svg",
    )
    page.headers["content-security-policy"] = _CONTENT_SECURITY_POLICY
    return page


@router.get("/docs/{name}")
async def read_docs_file(name: str) -> Response:
    """The page's script or style sheet."""
    media_type = _MEDIA_TYPES.get(name)
    if media_type is None:
        raise NotFound("the documents have no such file")
    return FileResponse(
        str(files("fastapi_offline") / "static" / name),
        media_type=media_type,
        headers={"cache-control": "public, max-age=86400"},
    )


def describe_keys(app: FastAPI) -> None:
    """Let the document say how a key is sent, if one is needed."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        document.setdefault("components", {})["securitySchemes"] = _SCHEMES
        # The empty one says that a service without keys asks for none.
        document["security"] = [{}, *({name: []} for name in _SCHEMES)]
        return document

    # FastAPI's documented way to extend the document.
    app.openapi = openapi  # type: ignore[method-assign]
