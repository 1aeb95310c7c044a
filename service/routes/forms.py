"""multipart/form-data: texts and files out of a request's body.

Owns how many parts a form may have and that its files stay in memory, where the body's limit bounds
them. Which fields mean something is not known here, except that a route names its files.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from pydantic import BaseModel
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from service.errors import InvalidRequest

MULTIPART = "multipart/form-data"
# For the examples in the API's description: two by two pixels of red.
SMALL_PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91Jp"
    "zAAAAFklEQVR4nGO8I6fBwMDAxMDAwMDAAAAOdgEmkr/FpgAAAABJRU5ErkJggg=="
)
_MAX_FILES = 32
_MAX_TEXTS = 64
_MAX_TEXT_BYTES = 65536


@dataclass(frozen=True)
class Form:
    """A form's parts by name."""

    texts: dict[str, str] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)


class _Parser(MultiPartParser):
    """Writes nothing to the disk, which a container may lack, and takes no form cut short."""

    spool_max_size = sys.maxsize

    def __init__(self, request: Request) -> None:
        super().__init__(
            request.headers,
            self._to_its_end(request.stream()),
            max_files=_MAX_FILES,
            max_fields=_MAX_TEXTS,
            max_part_size=_MAX_TEXT_BYTES,
        )
        self._has_ended = False

    def on_end(self) -> None:
        """The last boundary is there."""
        self._has_ended = True

    async def _to_its_end(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in stream:
            yield chunk
        if not self._has_ended:
            raise MultiPartException("it ends before its last boundary")


def is_form(request: Request) -> bool:
    """Whether the client says that its body is a form."""
    return request.headers.get("content-type", "").lower().startswith(MULTIPART)


async def read_form(request: Request, file_names: Collection[str]) -> Form:
    """Read a body whole.

    Args:
        request: whose body has not been read.
        file_names: of the parts that are files.

    Raises:
        InvalidRequest: it is no such form, or a part is of the wrong kind, named.
        BodyTooLarge: it has too many bytes.
    """
    try:
        parts = await _Parser(request).parse()
    except MultiPartException as error:
        raise InvalidRequest(f"the form cannot be read: {error.message}") from None
    try:
        return await _sorted(parts, file_names)
    finally:
        await parts.close()


async def _sorted(parts: FormData, file_names: Collection[str]) -> Form:
    form = Form()
    for name, part in parts.multi_items():
        if isinstance(part, UploadFile):
            if name not in file_names:
                raise InvalidRequest(
                    "this form takes no file of that name",
                    field=name[:64],
                    allowed=list(file_names),
                )
            form.files.setdefault(name, []).append(await part.read())
        elif name in file_names:
            raise InvalidRequest(
                f"{name} must be a file of the form: with curl, -F {name}=@picture.png",
                field=name,
            )
        elif name in form.texts:
            raise InvalidRequest("a field of the form came twice", field=name[:64])
        else:
            form.texts[name] = part
    return form


def form_schema(
    request: type[BaseModel], file_names: Sequence[str], required: Sequence[str] = ()
) -> dict[str, Any]:
    """The schema of a form: a request's fields, with these as files."""
    schema = request.model_json_schema()
    for name in file_names:
        described = schema["properties"].get(name, {}).get("description", "PNG, JPEG or WebP.")
        schema["properties"][name] = {
            "type": "string",
            "format": "binary",
            "description": described.replace(" in base64, or a data: URL", ""),
        }
    schema["required"] = [*schema["required"], *required]
    return schema
