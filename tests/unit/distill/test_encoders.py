"""The vocabulary in CLIP's form, and the text encoder on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
import torch
from distill_fixtures import tiny_text

from distill.config import ConfigError
from distill.networks.encoders import BOS, EOS, TextEncoder, train_tokenizer
from engines.tokenizer import Tokenizer

CAPTIONS = [f"a {colour} circle, flat" for colour in ("red", "green", "blue")] * 3


@pytest.fixture(scope="module")
def text() -> TextEncoder:
    return tiny_text()


def test_the_vocabulary_has_clips_form() -> None:
    vocabulary = train_tokenizer(CAPTIONS, 600).get_vocab()
    assert (vocabulary[BOS], vocabulary[EOS]) == (0, 1)
    for word in ("circle</w>", "green</w>", "a</w>", ",</w>"):
        assert word in vocabulary
    assert "circle" not in vocabulary


def test_a_caption_round_trips_through_the_file(tmp_path: Path) -> None:
    raw = train_tokenizer(CAPTIONS, 600)
    raw.save(str(tmp_path / "tokenizer.json"))
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert again.get_vocab() == raw.get_vocab()
    for caption in CAPTIONS:
        encoding = again.encode(caption)
        assert encoding.ids == raw.encode(caption).ids
        words = "".join(encoding.tokens).replace("</w>", " ")
        assert words == caption.replace(",", " ,") + " "


def test_case_and_spaces_do_not_matter() -> None:
    raw = train_tokenizer(CAPTIONS, 600)
    plain = raw.encode("a red circle").ids
    assert raw.encode("A  RED\n Circle").ids == plain
    assert len(plain) == 3


@pytest.mark.parametrize(
    "prompt", ["xylophone", "Größe", "赤い丸", "🙂!?", "a1b2", "</w>", "\x00", "'s", ""]
)
def test_no_prompt_has_an_unknown_part(prompt: str) -> None:
    raw = train_tokenizer(CAPTIONS, 600)
    ids = raw.encode(prompt).ids
    assert bool(ids) == bool(prompt)
    assert not {raw.token_to_id(BOS), raw.token_to_id(EOS)} & set(ids)


def test_the_same_captions_give_the_same_vocabulary() -> None:
    """A resumed training learns it anew; the library's hash maps are seeded at random."""
    captions = [f"{letter} b{letter}" for letter in "acdefghijklmnopqrstuvwxyz1234567890"]
    first = train_tokenizer(captions, 600).to_str()
    for _ in range(4):
        assert train_tokenizer(captions, 600).to_str() == first


def test_ids_begin_end_and_are_padded_with_the_end(text: TextEncoder) -> None:
    ids_BL = text.tokens(["a red circle", ""])
    bos, eos = text.spec.bos_token_id, text.spec.eos_token_id
    assert ids_BL.shape == (2, text.spec.max_tokens)
    assert ids_BL[:, 0].tolist() == [bos, bos]
    assert ids_BL[0, 4:].eq(eos).all()
    assert not ids_BL[0, 1:4].eq(eos).any()
    assert ids_BL[1, 1:].eq(eos).all()


def test_a_long_prompt_is_cut(text: TextEncoder) -> None:
    ids_BL = text.tokens(["red circle " * 50])
    assert ids_BL.shape == (1, text.spec.max_tokens)
    assert ids_BL[0, -1] == text.spec.eos_token_id


@torch.no_grad()
def test_the_encoder_comes_back_from_its_folder(text: TextEncoder, tmp_path: Path) -> None:
    text.save(tmp_path)
    again = TextEncoder.load(tmp_path).eval()
    assert again.spec == text.spec
    ids_BL = again.tokens(["green ring", "a purple square"])
    assert torch.equal(ids_BL, text.tokens(["green ring", "a purple square"]))
    assert torch.equal(again(ids_BL), text(ids_BL))
    assert text(ids_BL).shape == (2, text.spec.max_tokens, text.spec.width)


def test_serving_reads_the_saved_tokenizer(text: TextEncoder, tmp_path: Path) -> None:
    text.save(tmp_path)
    raw = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    served = Tokenizer(raw, text.spec).encode(["a red circle, flat"])
    assert served.tolist() == text.tokens(["a red circle, flat"]).tolist()


@pytest.mark.parametrize("missing", ["tokenizer/tokenizer.json", "text_encoder/config.json"])
def test_a_missing_part_is_refused(text: TextEncoder, tmp_path: Path, missing: str) -> None:
    text.save(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(ConfigError, match=r"no text encoder in .*: run `onestep-distill teacher`"):
        TextEncoder.load(tmp_path)
