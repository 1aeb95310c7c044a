"""Paths that lead nowhere, traversals in every spelling, methods that a path does not have."""

from __future__ import annotations

from bad_requests.row import GENERATE, IMAGES, BadRequest

_SECRETS = ("etc/passwd", "service/settings.py", "proc/self/environ")
_UP = (
    *("../", "..%2f", "%2e%2e/", "%2e%2e%2f", ".%2e/", "%2E%2E%2F", "..%5c", "..\\", "....//"),
    *("..;/", "..%00/", "..%c0%af", "..%ef%bc%8f", "%252e%252e%252f", "..%u2215", "/", "//", "%2f"),
)
_NAMES = (
    *(".", "..", "%2e", "%2e%2e", "%00", "index.html%00.css", "playground.css%00", "*", "~", "-"),
    *(
        "%",
        "%zz",
        "%ff",
        "%c3%28",
        "%ed%a0%80",
        "C:%5cWindows",
        "%5c%5chost%5cshare",
        "nul",
        "a" * 8000,
    ),
    *(
        "file:%2f%2f%2fetc%2fpasswd",
        "http:%2f%2f169.254.169.254%2f",
        "__init__.py",
        "index.html.bak",
    ),
)
_FOLDERS = ("/playground/", "/v1/images/", "/v1/models/")


def _traversals(folder: str) -> list[BadRequest]:
    ups = [f"{up * 6}{_SECRETS[index % len(_SECRETS)]}" for index, up in enumerate(_UP)]
    return [
        BadRequest(
            (name if len(name) < 60 else f"{name[:20]}... of {len(name)}"),
            404,
            # Whatever stands where a model's name stands is a model that is not there.
            "model" if folder == "/v1/models/" and _is_one_segment(name) else None,
            method="GET",
            path=folder + name,
        )
        for name in (*ups, *_NAMES)
    ]


def _is_one_segment(name: str) -> bool:
    """Whether no slash is left in a name once it has been decoded."""
    lowered = name.lower()
    return "/" not in lowered and "%2f" not in lowered


_METHODS = {
    GENERATE: ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "PURGE"),
    IMAGES: ("PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "LOCK"),
    "/v1/models": ("POST", "PUT", "DELETE", "OPTIONS", "HEAD", "SEARCH"),
    "/v1/images/name": ("POST", "PUT", "DELETE", "HEAD"),
    "/": ("POST", "PUT", "DELETE", "OPTIONS"),
    "/playground/playground.css": ("POST", "DELETE", "PATCH"),
    "/livez": ("POST", "DELETE"),
    "/readyz": ("PUT",),
    "/metrics": ("POST",),
}
_NOWHERE = (
    *(
        "/v1",
        "/v1/",
        "/v2/generate",
        "/V1/generate",
        "/v1/Generate",
        "/v1/generate/",
        "//v1/generate",
    ),
    *(
        "/v1//generate",
        "/v1/./generate",
        "/v1/x/../generate",
        "/v1/generate%2f",
        "/v1/generate;a=b",
    ),
    *("/v1/generate%20", "/v1/generate%00", "/%76%31/generate/x", "/generate", "/admin", "/.env"),
    *("/.git/config", "/wp-login.php", "/playground", "/models/emoji/model.json", "/favicon.ico"),
    *("/v1/images", "/v1/images/", "/v1/images/edits/x", "/v1/models/", "/livez/", "/metrics/"),
    *("/service/settings.py", "/openapi.yaml", "/*", "/%", "/%ff%fe"),
)
_REDIRECTS = [
    BadRequest(
        f"no redirect to another host: {path}",
        404,
        method="GET",
        path=path,
        headers={"Host": "attacker.example"},
    )
    for path in ("/v1/models/", "/livez/", "/metrics/", "//attacker.example/%2e%2e")
]

ROWS = {
    **{f"traversals of {folder}": _traversals(folder) for folder in _FOLDERS},
    "methods": [
        BadRequest(f"{method} {path}", 405, method=method, path=path)
        for path, methods in _METHODS.items()
        for method in methods
    ],
    "nowhere": [
        *(BadRequest(path, 404, path=path, body=b"{}") for path in _NOWHERE),
        BadRequest("/docs/x", 404, method="GET", path="/docs/x"),
    ],
    "redirects": _REDIRECTS,
}
