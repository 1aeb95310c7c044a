"""Pictures that are none, and forms that cannot be."""

from __future__ import annotations

from picture_files import drawn, hostile_files, saved

from bad_requests.row import GENERATE, BadRequest

EDITS = "/v1/images/edits"
_BOUNDARY = "pictures"
_MAX_BYTES = 60_000
_GOOD = saved(drawn())
Part = tuple[str, bytes]


def _form(name: str, path: str, *parts: Part, status: int = 400, field: str | None) -> BadRequest:
    """A form; a part whose name ends in `>` is a text."""
    body = b""
    for part, content in parts:
        file = "" if part.endswith(">") else '; filename="a.png"'
        head = f'content-disposition: form-data; name="{part.rstrip(">")}"{file}'
        body += f"--{_BOUNDARY}\r\n{head}\r\n\r\n".encode() + content + b"\r\n"
    return BadRequest(
        f"{name}, {path}",
        status,
        field,
        path=path,
        headers={"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"},
        body=body + f"--{_BOUNDARY}--\r\n".encode(),
    )


_PROMPT: Part = ("prompt>", b"a red heart")
_IMAGE: Part = ("image", _GOOD)
_PICTURES = [
    _form(
        f"{field}: {name}",
        path,
        _PROMPT,
        *([_IMAGE] if field == "mask" else []),
        (field, content),
        status=413 if code == "picture_too_large" else 400,
        field=field,
    )
    for path in (GENERATE, EDITS)
    for field in ("image", "mask")
    for name, content, code in hostile_files()
    if len(content) < _MAX_BYTES
]
_FORMS = [
    _form(name, path, *parts, field=field)
    for path in (GENERATE, EDITS)
    for name, field, parts in (
        ("no prompt", "prompt", [_IMAGE]),
        ("a prompt twice", "prompt", [_PROMPT, _PROMPT, _IMAGE]),
        ("a prompt in a file", "prompt", [("prompt", b"a red heart"), _IMAGE]),
        ("a picture in a text", "image", [_PROMPT, ("image>", b"AAAA")]),
        ("two pictures", "image", [_PROMPT, _IMAGE, _IMAGE]),
        ("two masks", "mask", [_PROMPT, _IMAGE, ("mask", _GOOD), ("mask", _GOOD)]),
        ("a mask without alpha", "mask", [_PROMPT, _IMAGE, ("mask", _GOOD)]),
        ("an unknown file", "hat", [_PROMPT, _IMAGE, ("hat", _GOOD)]),
        ("an unknown text", "hat", [_PROMPT, _IMAGE, ("hat>", b"1")]),
        ("a seed in words", "seed", [_PROMPT, _IMAGE, ("seed>", b"seven")]),
        ("strength 0", "strength", [_PROMPT, _IMAGE, ("strength>", b"0")]),
        ("strength not a number", "strength", [_PROMPT, _IMAGE, ("strength>", b"nan")]),
        ("a null character", "prompt", [("prompt>", b"a\0b"), _IMAGE]),
        ("no UTF-8", "seed", [_PROMPT, _IMAGE, ("seed>", b"\xff\xfe")]),
        ("hundreds of texts", None, [_PROMPT, _IMAGE, *[("a>", b"")] * 300]),
        ("hundreds of files", None, [_PROMPT, *[("image", b"a")] * 300]),
    )
]
_NO_FORMS = [
    BadRequest(
        f"{name}, {path}",
        path=path,
        headers={"Content-Type": f"multipart/form-data{parameters}"},
        body=body,
    )
    for path in (GENERATE, EDITS)
    for name, parameters, body in (
        ("no boundary", "", b"--b--"),
        ("an empty boundary", "; boundary=", b"--b--"),
        ("another boundary", "; boundary=b", b"--c\r\n\r\n--c--"),
        ("no parts", "; boundary=b", b"nothing"),
        ("an endless boundary", "; boundary=" + "b" * 5000, b"--b--"),
        ("a part without a name", "; boundary=b", b"--b\r\na: b\r\n\r\nx\r\n--b--"),
        (
            "a part without an end",
            "; boundary=b",
            b'--b\r\ncontent-disposition: form-data; name="a',
        ),
        ("a head without an end", "; boundary=b", b"--b\r\n" + b"a: b\r\n" * 5000),
    )
]
ROWS = {
    "pictures that are none": _PICTURES,
    "forms with something wrong": _FORMS,
    "forms that are none": _NO_FORMS,
    "edits without a form": [
        BadRequest("JSON", path=EDITS, body=b'{"prompt": "a", "image": "AAAA"}'),
        BadRequest("nothing", path=EDITS),
    ],
}
