"""Jobs that are not there, lists without a bound, keys that are none, webhooks that are off."""

from __future__ import annotations

from bad_requests.row import GENERATE, IMAGES, JOBS, BadRequest

_GOOD = b'{"prompt": "a red heart"}'
_ID = "0123456789abcdef" * 2
_NO_IDS = (
    *(_ID, _ID * 2, _ID.upper(), f"{_ID}-0", f"{_ID}0", _ID[:-1], "0", "-1", "null", "*"),
    *("%00", "%2e%2e", "..%2f..%2fetc%2fpasswd", "%ff", "a" * 8000, "*:job:*", "{emoji}"),
)
_NO_INDICES = ("-1", "00", "1e0", "x", "%30%30", "9" * 400, "0%00", "*")
_NO_LIMITS = ("0", "-1", "101", "x", "1.5", "", "1&limit=1", "0x10", "%D9%A1", "9" * 400)
_NO_KEYS = {
    "empty": "",
    "with a space": "a b",
    "too long": "k" * 256,
    "far too long": "k" * 8000,
    "not ASCII": "clé",
    "with a tab": "a\tb",
}
_NO_WEBHOOKS = (
    *('"https://hooks.example.com/"', '"http://169.254.169.254/"', '"http://localhost:6379/"'),
    *('""', '"x"', "1", "true", "[]", "{}", '["https://hooks.example.com/"]'),
)

ROWS = {
    "jobs that are not there": [
        BadRequest(
            f"{method} {path[:60]} of {len(path)}", 404, method=method, path=f"{JOBS}/{path}"
        )
        for one in _NO_IDS
        for method, path in (
            ("GET", one),
            ("DELETE", one),
            ("GET", f"{one}/events"),
            ("GET", f"{one}/images/0"),
        )
    ],
    "pictures that are not there": [
        BadRequest(f"picture {index[:20]}", 404, method="GET", path=f"{JOBS}/{_ID}/images/{index}")
        for index in _NO_INDICES
    ],
    "lists without a bound": [
        BadRequest(f"limit {limit[:20]}", field="limit", method="GET", path=f"{JOBS}?limit={limit}")
        for limit in _NO_LIMITS
    ],
    "lists of all": [BadRequest("whose jobs are whose", 403, method="GET", path=JOBS)],
    "idempotency keys": [
        BadRequest(
            f"{name} to {path}",
            field="idempotency-key",
            path=path,
            headers={"Idempotency-Key": key},
            body=_GOOD,
        )
        for path in (GENERATE, IMAGES, JOBS)
        for name, key in _NO_KEYS.items()
    ],
    "webhooks": [
        BadRequest(
            webhook,
            field="webhook",
            path=JOBS,
            body=b'{"prompt": "a", "webhook": ' + webhook.encode() + b"}",
        )
        for webhook in _NO_WEBHOOKS
    ]
    + [
        BadRequest(
            "where the pictures are waited for",
            field="webhook",
            body=b'{"prompt": "a", "webhook": "https://hooks.example.com/"}',
        )
    ],
    "bodies of jobs": [
        BadRequest(name, path=JOBS, body=body, field=field)
        for name, body, field in (
            ("none", b"", None),
            ("a list", b"[]", None),
            ("no prompt", b"{}", "prompt"),
            ("unknown field", b'{"prompt": "a", "callback": 1}', "callback"),
            ("too many", b'{"prompt": "a", "num_images": 17}', "num_images"),
            ("broken", b'{"prompt": "a"', None),
        )
    ],
    "methods of jobs": [
        BadRequest(f"{method} {path}", 405, method=method, path=path)
        for path, methods in {
            JOBS: ("PUT", "PATCH", "DELETE", "OPTIONS"),
            f"{JOBS}/{_ID}": ("POST", "PUT", "PATCH", "OPTIONS"),
            f"{JOBS}/{_ID}/events": ("POST", "DELETE"),
            f"{JOBS}/{_ID}/images/0": ("POST", "DELETE"),
        }.items()
        for method in methods
    ],
}
