"""The text stage: one CLIP text encoder, or SDXL's two.

Owns which hidden states condition the UNet, as the pipelines of diffusers choose them. Knows
nothing of prompts: token ids come in.

Shape suffixes: B batch, L tokens, D width, P pooled width.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from engines.spec import TextSpec


class TextStage(nn.Module):
    """input_ids_BL int64 -> text_embeds_BLD float32, after the final layer norm."""

    def __init__(self, encoder: nn.Module) -> None:
        """Wrap a CLIP text encoder."""
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids_BL: Tensor) -> Tensor:
        """Encode tokens; padding is seen by no token before it, the attention being causal."""
        return cast(Tensor, self.encoder(input_ids=input_ids_BL).last_hidden_state).float()


class DualTextStage(nn.Module):
    """input_ids_BL int64 -> text_embeds_BLD and pooled_BP float32, of SDXL's two encoders.

    The embeds are the last but one hidden states of both side by side, the final layer norm left
    out; pooled is the second one's end token after norm and projection.
    """

    def __init__(self, first: nn.Module, second: nn.Module, text: TextSpec) -> None:
        """Wrap a CLIP text encoder and one with a projection; `text` tells their special ids."""
        super().__init__()
        self.first = first
        self.second = second
        self.end_id = text.eos_token_id
        self.second_pad_id = text.second_pad_token_id

    def forward(self, input_ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Encode tokens; both tokenizers agree on them up to the first end token."""
        is_end_BL = input_ids_BL == self.end_id
        num_ends_BL = torch.cumsum(is_end_BL.to(torch.int32), dim=1, dtype=torch.int32)
        is_first_end_BL = is_end_BL & (num_ends_BL == 1)
        is_past_BL = (num_ends_BL > 0) & ~is_first_end_BL
        second_ids_BL = input_ids_BL
        if self.second_pad_id is not None:
            second_ids_BL = torch.where(is_past_BL, self.second_pad_id, input_ids_BL)
        first: Any = self.first(input_ids=input_ids_BL, output_hidden_states=True)
        second: Any = self.second(input_ids=second_ids_BL, output_hidden_states=True)
        hidden = (first.hidden_states[-2].float(), second.hidden_states[-2].float())
        last_BLP = second.last_hidden_state
        # A sum with one term: picking a row by its index costs more nodes in a graph.
        at_end_BP = (is_first_end_BL.to(last_BLP.dtype)[:, :, None] * last_BLP).sum(dim=1)
        projection = cast(nn.Module, self.second.text_projection)
        return torch.cat(hidden, dim=-1), projection(at_end_BP).float()
