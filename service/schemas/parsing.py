"""From the bytes or the form of a request to a checked `Generation`."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from service.errors import InvalidRequest
from service.schemas.generation import Generation, resolve
from service.schemas.limits import ModelLimits
from service.schemas.refusals import allowed_values, first_refusal
from service.schemas.requests import GenerateRequest

# Far more than any request has; a picture in base64 holds none of what is counted.
MAX_JSON_MARKS = 4096
_JSON_MARKS = (b",", b":", b"[", b"{")


def check_json_size(body: bytes) -> None:
    """Refuse JSON of very many values before it is parsed.

    A body may be large because a picture is in it. As many bytes of empty lists or short names take
    seconds to parse and fifty times their size in memory, and nobody else is served meanwhile.

    Raises:
        InvalidRequest: more values than any request has.
    """
    if len(body) > MAX_JSON_MARKS and sum(map(body.count, _JSON_MARKS)) > MAX_JSON_MARKS:
        raise InvalidRequest(
            "the body holds too many names and values", allowed={"max_values": MAX_JSON_MARKS}
        )


def parse_generation(
    body: bytes, limits: ModelLimits, kind: type[GenerateRequest] = GenerateRequest
) -> Generation:
    """Check a JSON body against the schema and the served model.

    Raises:
        InvalidRequest: names the field and what is allowed.
    """
    check_json_size(body)
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        raise first_refusal(error, kind, allowed_values(limits)) from None
    return resolve(request, limits)


def parse_generation_form(
    texts: Mapping[str, str],
    files: Mapping[str, bytes],
    limits: ModelLimits,
    kind: type[GenerateRequest] = GenerateRequest,
) -> Generation:
    """The same of a form, where numbers are text.

    Raises:
        InvalidRequest: names the field and what is allowed.
    """
    try:
        request = kind.model_validate_strings(texts, strict=False)
    except ValidationError as error:
        raise first_refusal(error, kind, allowed_values(limits)) from None
    return resolve(request.model_copy(update=dict(files)), limits)
