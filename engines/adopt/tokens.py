"""The tokenizers of a diffusers folder: what serving must know of them, and one file of them.

Owns special ids, the comparison of SDXL's two, and the conversion of the older pair of files
(vocab.json, merges.txt). Knows nothing of prompts.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import transformers

from engines.adopt.settings import read_settings
from engines.errors import BundleError, ExportError
from engines.spec import ModelSpec, TextSpec
from engines.tokenizer import tokenizer_path


def read_text_spec(folder: Path, *, is_dual: bool) -> TextSpec:
    """Token counts, widths and special ids of a folder's text stage.

    Raises:
        ExportError: a tokenizer or text encoder cannot be read or is of another kind, or the two
            tokenizers differ in more than their padding.
    """
    first = _tokenizer(folder / "tokenizer")
    encoder = _encoder(folder / "text_encoder")
    width, pooled_width, second_pad = encoder["hidden_size"], None, None
    max_tokens = min(first.model_max_length, encoder["max_position_embeddings"])
    if is_dual:
        second = _tokenizer(folder / "tokenizer_2")
        _refuse_other_words(first, second, folder)
        encoder_2 = _encoder(folder / "text_encoder_2")
        width += encoder_2["hidden_size"]
        pooled_width, second_pad = encoder_2["projection_dim"], second.pad_token_id
        max_tokens = min(max_tokens, encoder_2["max_position_embeddings"])
    return TextSpec(
        max_tokens=max_tokens,
        width=width,
        pooled_width=pooled_width,
        second_pad_token_id=second_pad,
        bos_token_id=first.bos_token_id,
        eos_token_id=first.eos_token_id,
        pad_token_id=first.pad_token_id,
    )


def write_tokenizer(folder: Path, spec: ModelSpec, path: Path) -> None:
    """Write a folder's tokenizer as one file that the tokenizers library reads.

    Raises:
        BundleError: there is none, in neither form.
        ExportError: it cannot be read.
    """
    try:
        shutil.copyfile(tokenizer_path(folder, spec), path)
    except BundleError:
        if not (folder / "tokenizer" / "vocab.json").is_file():
            raise
        text = _tokenizer(folder / "tokenizer").backend_tokenizer.to_str()
        path.write_text(text, encoding="utf-8")


def _tokenizer(folder: Path) -> Any:
    if not folder.is_dir():
        raise ExportError(f"{folder} is missing: fetch the model again")
    try:
        return transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever the library meets in the files
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(f"cannot load {folder} ({reason}): fetch the model again") from error


def _encoder(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    settings = read_settings(path)
    kind = settings.get("model_type")
    if kind != "clip_text_model":
        raise ExportError(f"{path}: model_type {kind!r}: text encoders are clip_text_model here")
    if settings.get("use_attention_mask"):
        raise ExportError(f"{path}: use_attention_mask: padding that is masked is not supported")
    # The configuration's class knows what older files leave to its defaults.
    read: dict[str, Any] = transformers.CLIPTextConfig(**settings).to_dict()
    return read


def _refuse_other_words(first: Any, second: Any, folder: Path) -> None:
    models = [json.loads(t.backend_tokenizer.to_str())["model"] for t in (first, second)]
    words = [(model["vocab"], model["merges"]) for model in models]
    special = [(t.bos_token_id, t.eos_token_id) for t in (first, second)]
    if words[0] != words[1] or special[0] != special[1]:
        raise ExportError(
            f"{folder}: tokenizer and tokenizer_2 differ in more than their padding: one row of "
            "token ids cannot serve both"
        )
