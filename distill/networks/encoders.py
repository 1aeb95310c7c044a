"""Prompts to text embeddings while training.

Owns the vocabulary trained on the captions, in the CLIP tokenizer's form, and the CLIP text model.
Knows nothing of pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from distill.config import ConfigError, TextConfig
from distill.networks.conditioning import Conditioning
from engines.spec import TextSpec
from engines.tokenizer import Tokenizer

# Shape suffixes: B batch, L tokens, D width.

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
# CLIP's split: the special tokens, runs of letters, single digits, runs of anything else.
_PATTERN = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Learn a lower-case byte-pair vocabulary in CLIP's form from the captions.

    The same captions give the same ids in every process: a resumed training learns its vocabulary
    anew. Like CLIP's, it holds every byte in the middle and at the end of a word, so that no
    prompt has an unknown part.
    """
    raw = tokenizers.Tokenizer(
        models.BPE(unk_token=EOS, end_of_word_suffix=_WORD_END, continuing_subword_prefix="")
    )
    raw.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        # The trainer would number the bytes that end a word in the order of a randomly seeded
        # hash map, and break ties between merges by those numbers. Special tokens come first,
        # in the order given.
        special_tokens=[BOS, EOS, *(byte + _WORD_END for byte in alphabet)],
        initial_alphabet=alphabet,
        end_of_word_suffix=_WORD_END,
        show_progress=False,
    )
    raw.train_from_iterator(captions, trainer)
    document = json.loads(raw.to_str())
    document["added_tokens"] = [t for t in document["added_tokens"] if t["content"] in (BOS, EOS)]
    return tokenizers.Tokenizer.from_str(json.dumps(document))


def text_spec(raw: tokenizers.Tokenizer, config: TextConfig) -> TextSpec:
    """What serving must know of the text stage; padding repeats the end id, as CLIP does."""
    bos, eos = raw.token_to_id(BOS), raw.token_to_id(EOS)
    return TextSpec(
        max_tokens=config.max_tokens,
        width=config.width,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=eos,
        max_prompt_chars=config.max_prompt_chars,
    )


def build_text_model(config: TextConfig, vocab_size: int, bos: int, eos: int) -> CLIPTextModel:
    """Return an untrained CLIP text model over a vocabulary."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=config.width,
            intermediate_size=config.width * 4,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            max_position_embeddings=config.max_tokens,
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=eos,
            projection_dim=config.width,
        )
    )


class TextEncoder(nn.Module):
    """Tokenizer and text model together: prompts in, text_embeds_BLD out."""

    def __init__(self, raw: tokenizers.Tokenizer, model: CLIPTextModel, spec: TextSpec) -> None:
        """Join a tokenizer and the model trained with it."""
        super().__init__()
        self.raw = raw
        self.model = model
        self.spec = spec
        self._tokenizer = Tokenizer(raw, spec)

    @classmethod
    def create(cls, captions: Iterable[str], config: TextConfig) -> TextEncoder:
        """Train a vocabulary and build an untrained model over it."""
        raw = train_tokenizer(captions, config.vocab_size)
        spec = text_spec(raw, config)
        model = build_text_model(config, raw.get_vocab_size(), spec.bos_token_id, spec.eos_token_id)
        return cls(raw, model, spec)

    @classmethod
    def load(cls, folder: Path) -> TextEncoder:
        """Read `folder`/tokenizer and `folder`/text_encoder.

        Raises:
            ConfigError: a part is missing.
        """
        path = folder / "tokenizer" / "tokenizer.json"
        if not path.is_file() or not (folder / "text_encoder" / "config.json").is_file():
            raise ConfigError(f"no text encoder in {folder}: run `onestep-distill teacher`")
        raw = tokenizers.Tokenizer.from_file(str(path))
        spec = TextSpec.model_validate_json((folder / "tokenizer" / "text.json").read_text())
        model = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True)
        return cls(raw, model, spec)

    def save(self, folder: Path) -> None:
        """Write tokenizer and model where `load` and diffusers find them."""
        (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
        self.raw.save(str(folder / "tokenizer" / "tokenizer.json"))
        (folder / "tokenizer" / "text.json").write_text(self.spec.model_dump_json(indent=2))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.spec.max_tokens,
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": EOS,
            "unk_token": EOS,
        }
        (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
        self.model.save_pretrained(folder / "text_encoder")

    def tokens(self, prompts: Sequence[str]) -> torch.Tensor:
        """input_ids_BL int64, where the model lies."""
        return torch.from_numpy(self._tokenizer.encode(prompts)).to(self.model.device)

    def forward(self, input_ids_BL: torch.Tensor) -> torch.Tensor:
        """text_embeds_BLD, after the model's final layer norm."""
        text_embeds_BLD: torch.Tensor = self.model(input_ids=input_ids_BL).last_hidden_state
        return text_embeds_BLD

    def encode(self, input_ids: torch.Tensor) -> Conditioning:
        """Conditioning of token ids; the last token's embedding stands for the whole prompt.

        Every prompt ends in padding with the end id, which sees all tokens before it.
        """
        text_embeds_BLD = self(input_ids)
        return Conditioning(text_embeds_BLD, text_embeds_BLD[:, -1])
