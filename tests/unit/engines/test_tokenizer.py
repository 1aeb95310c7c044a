"""Prompts to ids: begin, end, padding and the cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engines_fixtures import tiny_spec, write_tokenizer

from engines.errors import BundleError
from engines.tokenizer import Tokenizer

PAD, BOS, EOS = 0, 1, 2


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    write_tokenizer(tmp_path / "tokenizer.json")
    return Tokenizer.load(tmp_path, tiny_spec())


def test_a_prompt_stands_between_begin_and_end_and_is_padded(tokenizer: Tokenizer) -> None:
    ids_BL = tokenizer.encode(["abc", ""])
    assert ids_BL.dtype == np.int64
    assert ids_BL.shape == (2, 12)
    assert ids_BL[0].tolist() == [BOS, 4, 5, 6, EOS] + [PAD] * 7
    assert ids_BL[1].tolist() == [BOS, EOS] + [PAD] * 10


def test_a_long_prompt_loses_its_last_tokens_and_keeps_its_end(tokenizer: Tokenizer) -> None:
    (ids_L,) = tokenizer.encode(["a" * 100])
    assert ids_L.tolist() == [BOS] + [4] * 10 + [EOS]


def test_num_tokens_counts_before_the_cut(tokenizer: Tokenizer) -> None:
    assert tokenizer.num_tokens("") == 2
    assert tokenizer.num_tokens("a" * 100) == 102


def test_the_diffusers_layout_is_found_too(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer" / "tokenizer.json")
    assert Tokenizer.load(tmp_path, tiny_spec()).num_tokens("abc") == 5


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(BundleError, match=f"{path} is missing.*export"):
        Tokenizer.load(tmp_path, tiny_spec())
    path.write_text("{")
    with pytest.raises(BundleError, match=f"{path} is damaged.*export"):
        Tokenizer.load(tmp_path, tiny_spec())
