"""The text encoders of Stable Diffusion: one CLIP model, or SDXL's two.

Owns what the pipelines of diffusers do between a prompt and the UNet, so that a student is trained
on the very vectors it will be given there. Knows nothing of diffusion.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.networks.conditioning import Conditioning
from engines.spec import TextSpec

# Shape suffixes: B batch, L tokens, D width.


def _padded_ids(tokenizer: Any, prompts: Sequence[str]) -> torch.Tensor:
    """input_ids_BL; what is too long loses its last tokens."""
    ids_BL: torch.Tensor = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return ids_BL


class ClipPrompts(nn.Module):
    """Stable Diffusion 1 and 2: the last hidden state, after the final layer norm."""

    def __init__(self, tokenizer: Any, model: Any) -> None:
        """Join a CLIPTokenizer and its CLIPTextModel."""
        super().__init__()
        self._tokenizer = tokenizer
        self.model = model
        self.pooled_width = int(model.config.hidden_size)

    @property
    def spec(self) -> TextSpec:
        """What serving must know of the text stage."""
        return TextSpec(
            max_tokens=self._tokenizer.model_max_length,
            width=self.pooled_width,
            bos_token_id=self._tokenizer.bos_token_id,
            eos_token_id=self._tokenizer.eos_token_id,
            pad_token_id=self._tokenizer.pad_token_id,
        )

    def tokens(self, prompts: Sequence[str]) -> torch.Tensor:
        """input_ids_BL int64, where the model lies."""
        return _padded_ids(self._tokenizer, prompts).to(self.model.device)

    def encode(self, input_ids: torch.Tensor) -> Conditioning:
        """Conditioning of token ids; pooled is the end token's embedding."""
        output = self.model(input_ids=input_ids)
        return Conditioning(output.last_hidden_state, output.pooler_output)

    def save(self, folder: Path) -> None:
        """Write tokenizer/ and text_encoder/."""
        self._tokenizer.save_pretrained(folder / "tokenizer")
        self.model.save_pretrained(folder / "text_encoder")


class DualClipPrompts(nn.Module):
    """SDXL: the last but one hidden states of two models side by side, the second's projection.

    The empty prompt is what the pipeline makes of it for guidance: zeros, where the folder says
    `force_zeros_for_empty_prompt`, as SDXL's does. There a caption that is dropped in training
    becomes zeros too, while the pipeline encodes an empty *positive* prompt like any other.
    """

    def __init__(
        self,
        tokenizers: Sequence[Any],
        models: Sequence[nn.Module],
        *,
        size_px: int,
        is_empty_zero: bool,
    ) -> None:
        """Join both tokenizers and both models.

        Args:
            tokenizers: tokenizer and tokenizer_2.
            models: a CLIPTextModel and a CLIPTextModelWithProjection.
            size_px: side of the pictures, told to the UNet as original and target size.
            is_empty_zero: whether the empty prompt becomes zeros.
        """
        super().__init__()
        self._tokenizers = tuple(tokenizers)
        self.models = nn.ModuleList(models)
        self._size_px = size_px
        self._is_empty_zero = is_empty_zero
        second: Any = models[1]
        self.pooled_width = int(second.config.projection_dim)

    @property
    def _device(self) -> torch.device:
        return next(self.models.parameters()).device

    def tokens(self, prompts: Sequence[str]) -> torch.Tensor:
        """Token ids int64, (B, 2, L), where the models lie."""
        ids = [_padded_ids(tokenizer, prompts) for tokenizer in self._tokenizers]
        return torch.stack(ids, dim=1).to(self._device)

    def encode(self, input_ids: torch.Tensor) -> Conditioning:
        """Conditioning of token ids, time ids included."""
        outputs = [
            model(input_ids=input_ids[:, which], output_hidden_states=True)
            for which, model in enumerate(self.models)
        ]
        text_embeds_BLD = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        pooled_BD = outputs[1].text_embeds
        if self._is_empty_zero:
            is_empty_B = (input_ids == self.tokens([""])).flatten(1).all(1)
            text_embeds_BLD = text_embeds_BLD.masked_fill(is_empty_B[:, None, None], 0.0)
            pooled_BD = pooled_BD.masked_fill(is_empty_B[:, None], 0.0)
        size = float(self._size_px)
        # Original height and width, the crop's top and left, target height and width.
        ids = torch.tensor([size, size, 0.0, 0.0, size, size], device=pooled_BD.device)
        return Conditioning(text_embeds_BLD, pooled_BD, ids.expand(len(pooled_BD), 6))

    def save(self, folder: Path) -> None:
        """Write tokenizer/, tokenizer_2/, text_encoder/ and text_encoder_2/."""
        for suffix, tokenizer, model in zip(("", "_2"), self._tokenizers, self.models, strict=True):
            tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
            # Any: transformers' method, which nn.Module does not promise.
            saved: Any = model
            saved.save_pretrained(folder / f"text_encoder{suffix}")
