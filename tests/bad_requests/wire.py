"""What is no valid HTTP/1.1, and what is valid and abusive: as bytes on the wire."""

from __future__ import annotations

from bad_requests.row import BadRequest

_POST = b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\n"
_GET = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"
_CHUNKED = _POST + b"Transfer-Encoding: chunked\r\n\r\n"
# The path that takes no picture takes the smaller bodies.
_POST_SMALL = _POST.replace(b"/v1/generate", b"/v1/images/generations")
_CHUNKED_SMALL = _POST_SMALL + b"Transfer-Encoding: chunked\r\n\r\n"
_LARGE_CHUNK = b"4000\r\n" + b" " * 0x4000 + b"\r\n"

_REQUEST_LINES = {
    "nothing but line ends, then noise": b"\r\n\r\n\r\n\x00\r\n\r\n",
    "noise": bytes(range(256)),
    "zeros": bytes(512),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/0.9 with a name": b"GET /livez HTTP/0.9\r\nHost: localhost\r\n\r\n",
    "HTTP/2 in words": b"GET /livez HTTP/2.0\r\nHost: localhost\r\n\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "HTTP/1": b"GET / HTTP/1\r\nHost: localhost\r\n\r\n",
    "another protocol": b"EHLO localhost\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
    "an unknown method": b"BREW /v1/generate HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a method in small letters": b"get /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a method with a null character": b"GE\x00T / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no method": b"/v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no path": b"GET  HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no slash": b"GET v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a space in the path": b"GET /v1/mo dels HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a control character in the path": b"GET /v1/\x01models HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "bytes over ASCII in the path": b"GET /v1/models/\xc3\xa9 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a proxy's CONNECT": b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "line feeds only": b"GET /v1/models HTTP/1.1\nHost: localhost\n\n",
    "carriage returns only": b"GET /v1/models HTTP/1.1\rHost: localhost\r\r",
}
_HEADERS = {
    "no Host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "two Hosts": _GET + b"Host: other\r\n\r\n",
    "a Host with a path": b"GET /v1/models HTTP/1.1\r\nHost: localhost/a\r\n\r\n",
    "a Host with credentials": b"GET /v1/models HTTP/1.1\r\nHost: a@localhost\r\n\r\n",
    "a Host with a space": b"GET /v1/models HTTP/1.1\r\nHost: local host\r\n\r\n",
    "a Host over ASCII": b"GET /v1/models HTTP/1.1\r\nHost: loc\xc3\xa4l\r\n\r\n",
    "a null character": _GET + b"X-A: a\x00b\r\n\r\n",
    "a control character in a name": _GET + b"X\x01A: a\r\n\r\n",
    "no name": _GET + b": a\r\n\r\n",
    "no colon": _GET + b"X-A\r\n\r\n",
    "a space before the colon": _GET + b"X-A : a\r\n\r\n",
    "a folded line": _GET + b"X-A: a\r\n b\r\n\r\n",
    "a bare carriage return": _GET + b"X-A: a\rb\r\n\r\n",
    "a name over ASCII": _GET + b"X-\xc3\xa4: a\r\n\r\n",
    "a space in a name": _GET + b"X A: a\r\n\r\n",
}
_LENGTHS = {
    "no number": _POST + b"Content-Length: abc\r\n\r\n",
    "negative": _POST + b"Content-Length: -1\r\n\r\n",
    "with a sign": _POST + b"Content-Length: +2\r\n\r\n{}",
    "hexadecimal": _POST + b"Content-Length: 0x2\r\n\r\n{}",
    "with an underscore": _POST + b"Content-Length: 1_0\r\n\r\n{}",
    "a list": _POST + b"Content-Length: 2, 2\r\n\r\n{}",
    "empty": _POST + b"Content-Length: \r\n\r\n{}",
    "past 64 bits": _POST + b"Content-Length: 99999999999999999999999\r\n\r\n",
    "two that differ": _POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "two that agree": _POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "beside chunks": _POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks beside it": _POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    "too short": _POST + b'Content-Length: 1\r\n\r\n{"prompt": "a"}',
}
_CHUNKS = {
    "a size that is none": _CHUNKED + b"zz\r\n",
    "a negative size": _CHUNKED + b"-1\r\n{}\r\n0\r\n\r\n",
    "a size with a prefix": _CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n",
    "a size past 64 bits": _CHUNKED + b"fffffffffffffffff\r\n{}",
    "no line end after the chunk": _CHUNKED + b"2\r\n{}XX0\r\n\r\n",
    "an empty size": _CHUNKED + b"\r\n{}\r\n0\r\n\r\n",
    "another coding": _POST + b"Transfer-Encoding: gzip\r\n\r\n{}",
    "chunked twice, misspelt": _POST + b"Transfer-Encoding: chunked, chunke\r\n\r\n0\r\n\r\n",
    "a line feed for a size's end": _CHUNKED + b"2\n{}\n0\n\n",
}
_TOO_LARGE = {
    "announced": _POST_SMALL + b"Content-Length: 65537\r\n\r\n",
    "ten gigabytes announced": _POST_SMALL + b"Content-Length: 10000000000\r\n\r\n",
    "announced, with a question": _POST_SMALL
    + b"Expect: 100-continue\r\nContent-Length: 99999\r\n\r\n",
    "chunks without end": _CHUNKED_SMALL + _LARGE_CHUNK * 64,
    "tiny chunks": _CHUNKED_SMALL + b"1\r\n \r\n" * 70_000,
}
_HEADS = {
    "one header": _GET + b"X-A: " + b"a" * 40_000 + b"\r\n\r\n",
    "a name": _GET + b"a" * 40_000 + b": a\r\n\r\n",
    "a header of a megabyte": _GET + b"X-A: " + b"a" * 2**20 + b"\r\n\r\n",
    "a header of 16 megabytes": _GET + b"X-A: " + b"a" * 2**24 + b"\r\n\r\n",
    "a header without end": _GET + b"X-A: " + b"a" * 200_000,
    "a hundred thousand headers": _GET + b"a: b\r\n" * 100_000 + b"\r\n",
    "headers without end": _GET + b"a: b\r\n" * 50_000,
    "a path": b"GET /" + b"a" * 50_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a path of a megabyte": b"GET /" + b"a" * 2**20 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a query": b"GET /v1/models?" + b"a=b&" * 10_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a few headers too many": _GET + b"a: b\r\n" * 128 + b"\r\n",
    "cookies": _GET + b"Cookie: a=b\r\n" * 4_000 + b"\r\n",
}
_UPGRADE = b"Connection: Upgrade\r\nUpgrade: "
_UPGRADES = [
    BadRequest(
        "a WebSocket where there is none",
        403,
        wire=_GET
        + _UPGRADE
        + b"websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        + b"Sec-WebSocket-Version: 13\r\n\r\n",
        has_document=False,
    ),
    BadRequest(
        "a WebSocket without its key",
        wire=_GET + _UPGRADE + b"websocket\r\n\r\n",
        has_document=False,
    ),
    BadRequest(
        "HTTP/2 in the clear",
        404,
        wire=b"GET /x HTTP/1.1\r\nHost: localhost\r\n" + _UPGRADE + b"h2c\r\n\r\n",
    ),
]


def _rows(status: int, field: str | None, wires: dict[str, bytes]) -> list[BadRequest]:
    return [BadRequest(name, status, field, wire=wire) for name, wire in wires.items()]


ROWS = {
    "request lines": _rows(400, None, _REQUEST_LINES),
    "headers": _rows(400, None, _HEADERS),
    "lengths": _rows(400, None, _LENGTHS),
    "chunks": _rows(400, None, _CHUNKS),
    "bodies too large on the wire": _rows(413, "body", _TOO_LARGE),
    "heads too large": [
        *_rows(431, None, _HEADS),
        BadRequest(
            "on the second request",
            431,
            before=_GET + b"\r\n",
            wire=_GET + b"X-A: " + b"a" * 2**17 + b"\r\n\r\n",
        ),
    ],
    "upgrades": _UPGRADES,
}
