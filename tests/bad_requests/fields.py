"""Fields of the wrong type, out of range, or that do not exist."""

from __future__ import annotations

from bad_requests.row import GENERATE, IMAGES, BadRequest, field_rows, unknown_field_rows

NO_NUMBERS = ('"1"', "true", "[]", "{}", "[1]", '{"a": 1}', '""')
NO_INTEGERS = (*NO_NUMBERS, "1.5", "NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e2")
NO_TEXTS = ("1", "1.5", "true", "[]", "{}", '["a"]', "NaN", "-0")
LONG = '"' + "a" * 60_000 + '"'

_GENERATE = {
    "prompt": (
        *("null", *NO_TEXTS, '""', '" "', '"\\t\\n"', '"\u3000\u2003"', LONG),
        *('"' + "\U0001f600" * 5000 + '"', '"' + "a " * 150 + '"', '"a\\u0000b"', '"\\u0000"'),
        *('"a\\u001bb"', '"a\\u0008"', '"a\\u007f"', '"' + "\u0301" * 3000 + '"'),
    ),
    "model": (
        *NO_TEXTS,
        '"nothing"',
        '""',
        '"../emoji"',
        '"Emoji"',
        '"emoji "',
        '"emoji\\u0000"',
        LONG,
    ),
    "seed": (
        *NO_INTEGERS,
        "-1",
        "4294967296",
        "1" * 40,
        "-" + "1" * 40,
        "1" * 4000,
        "1.0000000001",
    ),
    "width": (*NO_INTEGERS, "0", "-1", "7", "1000000", "4294967297", "1" * 400),
    "height": (*NO_INTEGERS, "0", "-1", "7", "1000000", "-9223372036854775809"),
    "steps": (*NO_INTEGERS, "null", "0", "-1", "1000", "1" * 30),
    "num_images": (*NO_INTEGERS, "null", "0", "-1", "17", "1000000000"),
    "format": (*NO_TEXTS, "null", '"gif"', '"PNG"', '"png "', '"image/png"', '""', '"svg"', LONG),
    "quality": (*NO_INTEGERS, "-1", "101", "1" * 30),
    "image": (
        *(
            "1",
            "true",
            "[]",
            "{}",
            '["AAAA"]',
            '""',
            '" "',
            '"AAA"',
            '"AA=A"',
            '"AAAA\\n"',
            '"-_-_"',
        ),
        *('"https://localhost/a.png"', '"file:///etc/passwd"', '"/etc/passwd"', '"data:"'),
        *('"data:image/png,AAAA"', '"data:image/png;base64,?"', '"\\u0000"', LONG, '"R0lGODlh"'),
    ),
    "mask": ("1", "[]", '"AAAA"'),
    "strength": (*NO_NUMBERS, "0.5", "0", "-1", "1.01", "NaN", "Infinity", "1e400", "1" * 400),
}
_IMAGES = {
    "prompt": ("null", *NO_TEXTS, '""', '"  "', LONG, '"a\\u0000b"'),
    "model": (*NO_TEXTS, '"dall-e-3"', '"gpt-image-1"', '""', '"../emoji"'),
    "n": (*NO_INTEGERS, "0", "-1", "11", "1" * 30),
    "size": (
        *NO_TEXTS,
        *('""', '"1x1"', '"1024x1024"', '"0x0"', '"-1x-1"', '"128"', '"128X128"', '"128\u00d7128"'),
        *(
            '"128x128x128"',
            '" 128x128"',
            '"99999999999x1"',
            '"\u0661x\u0661"',
            '"axb"',
            '"x"',
            LONG,
        ),
    ),
    "response_format": (*NO_TEXTS, '"png"', '"b64"', '"URL"', '""'),
    "output_format": (*NO_TEXTS, '"gif"', '"PNG"', '""'),
    "output_compression": (*NO_INTEGERS, "-1", "101"),
    "stream": ("1", "0", '"true"', "[]", "{}", '"yes"'),
    "partial_images": (*NO_INTEGERS, "-1", "4"),
    "background": (*NO_TEXTS, '"transparent"', '"white"'),
    "quality": (*NO_TEXTS, '"best"', "100"),
    "style": (*NO_TEXTS, '"anime"'),
    "moderation": (*NO_TEXTS, '"none"'),
    "user": NO_TEXTS,
    "seed": (*NO_INTEGERS, "-1", "4294967296", "1" * 40),
    "num_inference_steps": (*NO_INTEGERS, "0", "-1", "1000"),
    "guidance_scale": (*NO_NUMBERS, "7.5", "-1", "NaN", "Infinity", "-Infinity", "1e400", "2"),
    "negative_prompt": (*NO_TEXTS, '"ugly"', '" "', LONG),
}
_UNKNOWN = (
    *(
        "",
        " ",
        "Prompt",
        "prompt ",
        "prom\u0440t",
        "prompt\x00",
        "prompts",
        "image",
        "image_url",
        "url",
    ),
    *("__proto__", "__class__", "constructor", "$ref", "a.b", "seed[]", "model_config", "callback"),
    *(
        "\u202etpmorp",
        "\U0001f600",
        "a" * 64,
        "a" * 65,
        "a" * 50_000,
        "<script>",
        "${jndi:ldap://a}",
    ),
    *("file", "path", "bundle", "backend", "engine", "priority", "owner", "id", "deadline_s"),
)
_TOGETHER = [
    BadRequest("no prompt", field="prompt", body=b'{"seed": 1}'),
    BadRequest("nothing", field="prompt", body=b"{}"),
    BadRequest(
        "width of one size, height of none",
        field="width",
        body=b'{"prompt": "a", "width": 1, "height": 1}',
    ),
    BadRequest(
        "a good seed, then a bad one", field="seed", body=b'{"prompt": "a", "seed": 1, "seed": -1}'
    ),
    BadRequest("a good prompt, then none", field="prompt", body=b'{"prompt": "a", "prompt": null}'),
    BadRequest(
        "several pictures as one",
        field="num_images",
        headers={"Accept": "image/png"},
        body=b'{"prompt": "a", "num_images": 2}',
    ),
    BadRequest(
        "several pictures as one of any type",
        field="num_images",
        headers={"Accept": "image/*, application/json;q=0.5"},
        body=b'{"prompt": "a", "num_images": 16}',
    ),
    BadRequest("no prompt (images)", path=IMAGES, field="prompt", body=b'{"n": 1}'),
    BadRequest(
        "a stream of addresses",
        path=IMAGES,
        field="response_format",
        body=b'{"prompt": "a", "stream": true, "response_format": "url"}',
    ),
]

ROWS = {
    "fields of /v1/generate": [
        row for name, values in _GENERATE.items() for row in field_rows(GENERATE, name, values)
    ],
    "fields of /v1/images/generations": [
        row for name, values in _IMAGES.items() for row in field_rows(IMAGES, name, values)
    ],
    "unknown fields of /v1/generate": unknown_field_rows(GENERATE, _UNKNOWN),
    "unknown fields of /v1/images/generations": unknown_field_rows(
        IMAGES, [name for name in _UNKNOWN if name != "image"]
    ),
    "fields together": _TOGETHER,
}
