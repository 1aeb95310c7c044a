"""Bodies that are no JSON object: cut, nested, wrongly encoded, of another type, too large."""

from __future__ import annotations

import gzip

from bad_requests.row import GENERATE, IMAGES, BadRequest, json_rows

GOOD = '{"prompt": "a red heart"}'
_FORM = b"prompt=a+red+heart"
_MULTIPART = b'--b\r\ncontent-disposition: form-data; name="prompt"\r\n\r\na red heart\r\n--b--\r\n'

_NO_JSON: dict[str, str | bytes] = {
    "empty": "",
    "white space": " \n\t ",
    "a brace": "{",
    "a closing brace": "}",
    "cut after the name": '{"prompt"',
    "cut after the colon": '{"prompt":',
    "cut in the value": '{"prompt": "a red',
    "cut before the brace": '{"prompt": "a"',
    "cut in an escape": '{"prompt": "\\u00',
    "no quotes": "{prompt: a}",
    "single quotes": "{'prompt': 'a'}",
    "a comma too many": '{"prompt": "a",}',
    "a comma too few": '{"prompt": "a" "seed": 1}',
    "a comment": '{"prompt": "a" /* why */}',
    "two documents": GOOD + GOOD,
    "something after it": GOOD + "x",
    "a null character after it": GOOD + "\x00",
    "python": "{'prompt': None}",
    "undefined": '{"prompt": undefined}',
    "a hexadecimal number": '{"prompt": "a", "seed": 0x10}',
    "a leading zero": '{"prompt": "a", "seed": 01}',
    "a plus sign": '{"prompt": "a", "seed": +1}',
    "a bare point": '{"prompt": "a", "seed": .5}',
    "a digit limit": '{"prompt": "a", "seed": ' + "1" * 5000 + "}",
    "sixty thousand digits": '{"prompt": "a", "seed": ' + "1" * 60_000 + "}",
    "an unknown escape": '{"prompt": "\\x41"}',
    "a line end in a text": '{"prompt": "a\nb"}',
    "a null character in a text": '{"prompt": "a\x00b"}',
    "half a pair of surrogates": '{"prompt": "a\\ud800b"}',
    "the other half": '{"prompt": "a\\udc00b"}',
    "surrogates in the wrong order": '{"prompt": "\\udc00\\ud800"}',
    "a surrogate as a name": '{"prompt": "a", "\\ud800": 1}',
    "a byte order mark": b"\xef\xbb\xbf" + GOOD.encode(),
    "UTF-16": GOOD.encode("utf-16"),
    "UTF-16 without a mark": GOOD.encode("utf-16-le"),
    "UTF-32": GOOD.encode("utf-32"),
    "Latin-1": '{"prompt": "ä"}'.encode("latin-1"),
    "a stray byte": b'{"prompt": "\xff"}',
    "an overlong slash": b'{"prompt": "\xc0\xaf"}',
    "a surrogate in UTF-8": b'{"prompt": "\xed\xa0\x80"}',
    "beyond Unicode": b'{"prompt": "\xf4\x90\x80\x80"}',
    "a cut letter": b'{"prompt": "\xe2\x82"}',
    "zeros": bytes(1000),
    "noise": bytes(range(256)) * 8,
    "a PNG": b"\x89PNG\r\n\x1a\n" + bytes(64),
    "lists in lists": "[" * 60_000,
    "objects in objects": '{"a":' * 10_000,
    "nesting in a field": '{"prompt": ' + "[" * 20_000 + "]" * 20_000 + "}",
    "XML": "<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>",
    "YAML": "prompt: a red heart",
}
_NO_OBJECT: dict[str, str | bytes] = {
    "null": "null",
    "a truth": "true",
    "a number": "1",
    "not a number": "NaN",
    "a text": '"a red heart"',
    "a list": "[]",
    "an object in a list": f"[{GOOD}]",
    "many lists": "[" + "[]," * 20_000 + "[]]",
}
_OTHER_TYPES = [
    BadRequest(
        "a form",
        headers={"Content-Type": "application/x-www-form-urlencoded"},
        body=_FORM,
    ),
    BadRequest(
        "a multipart form where no picture may come",
        path=IMAGES,
        headers={"Content-Type": "multipart/form-data; boundary=b"},
        body=_MULTIPART,
    ),
    BadRequest("plain text", headers={"Content-Type": "text/plain"}, body=b"a red heart"),
    BadRequest(
        "compressed",
        headers={"Content-Type": "application/json", "Content-Encoding": "gzip"},
        body=gzip.compress(GOOD.encode()),
    ),
    BadRequest(
        "another character set",
        headers={"Content-Type": "application/json; charset=utf-16"},
        body=GOOD.encode("utf-16"),
    ),
    BadRequest("a type that is none", headers={"Content-Type": ";;;"}, body=_FORM),
    BadRequest(
        "MessagePack", headers={"Content-Type": "application/msgpack"}, body=b"\x81\xa1a\x01"
    ),
]
# A path that takes pictures allows eight megabytes, any other 64 KiB.
_MANY = 2**20
_MANY_VALUES = [
    BadRequest(f"{name}, {path}", path=path, body=body)
    for path, num in ((GENERATE, _MANY), (IMAGES, 15_000))
    for name, body in {
        "lists": b"[" + b"[]," * num + b"[]]",
        "objects": b'{"prompt": [' + b"{}," * num + b"{}]}",
        "one name": b'{"prompt": "a", ' + b'"":1,' * (num // 2) + b'"":1}',
        "names": b"{" + b",".join(b'"%d":1' % index for index in range(num // 3)) + b"}",
        "numbers in a field": b'{"prompt": "a", "seed": [' + b"1," * num + b"1]}",
    }.items()
]
_TOO_LARGE = [
    *(
        BadRequest(f"{name}, {IMAGES}", 413, "body", path=IMAGES, body=body)
        for name, body in {
            "one byte": b" " * 65537,
            "a long prompt": b'{"prompt": "' + b"a" * 100_000 + b'"}',
            "a megabyte": b"x" * 2**20,
            "a bomb of zeros": gzip.compress(bytes(2**26)) * 2,
        }.items()
    ),
    BadRequest(f"one byte, {GENERATE}", 413, "body", body=b" " * (2**23 + 1)),
]
_LARGE_PROMPT = [
    BadRequest("a prompt of a megabyte", field="prompt", body=b'{"prompt": "%b"}' % (b"a" * 2**20)),
    BadRequest("a seed of a megabyte", body=b'{"prompt": "a", "seed": %b}' % (b"1" * 2**20)),
    BadRequest("a megabyte of noise", body=bytes(range(256)) * 2**12),
]

ROWS = {
    "no JSON": [*json_rows(GENERATE, _NO_JSON)],
    "no JSON (images)": json_rows(IMAGES, _NO_JSON),
    "no object": json_rows(GENERATE, _NO_OBJECT),
    "no object (images)": json_rows(IMAGES, _NO_OBJECT),
    "other types of content": _OTHER_TYPES,
    "too many values": _MANY_VALUES,
    "large and allowed to be": _LARGE_PROMPT,
    "too large": _TOO_LARGE,
}
