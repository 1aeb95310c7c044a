"""Prompts to token ids, by the model's own tokenizer.json.

Owns padding and the begin and end ids. Knows nothing of models or frameworks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from engines.errors import BundleError
from engines.spec import ModelSpec, TextSpec


def tokenizer_path(folder: Path, spec: ModelSpec) -> Path:
    """Where a bundle, or a torch folder in the diffusers layout, keeps its tokenizer.

    Raises:
        BundleError: neither place holds one.
    """
    path = Path(folder) / spec.tokenizer_file
    nested = Path(folder) / "tokenizer" / path.name
    for candidate in (path, nested):
        if candidate.is_file():
            return candidate
    raise BundleError(f"{path} is missing: export or fetch the bundle again")


class Tokenizer:
    """CLIP-form tokenizer: begin id, the prompt's tokens, end id, padding to a fixed length."""

    def __init__(self, raw: tokenizers.Tokenizer, text: TextSpec) -> None:
        """Wrap a loaded tokenizer; begin, end and padding are added here, not by its file."""
        raw.no_padding()
        raw.no_truncation()
        self._raw = raw
        self._text = text

    @classmethod
    def load(cls, folder: Path, spec: ModelSpec) -> Tokenizer:
        """Read the tokenizer file that the spec names.

        Raises:
            BundleError: the file is missing or damaged.
        """
        path = tokenizer_path(folder, spec)
        try:
            raw = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust library raises bare Exception
            raise BundleError(f"{path} is damaged ({error}): export the bundle again") from error
        return cls(raw, spec.text)

    def num_tokens(self, prompt: str) -> int:
        """Tokens that a prompt needs, begin and end included, before any cut."""
        return len(self._raw.encode(prompt, add_special_tokens=False)) + 2

    def encode(self, prompts: Sequence[str]) -> NDArray[np.int64]:
        """Return input_ids_BL, int64; a prompt that is too long loses its last tokens."""
        text = self._text
        ids_BL = np.full((len(prompts), text.max_tokens), text.pad_token_id, dtype=np.int64)
        for row, prompt in zip(ids_BL, prompts, strict=True):
            # One by one: encode_batch starts threads, which costs more than a few prompts do.
            encoding = self._raw.encode(prompt, add_special_tokens=False)
            ids = [text.bos_token_id, *encoding.ids[: text.max_tokens - 2], text.eos_token_id]
            row[: len(ids)] = ids
        return ids_BL
