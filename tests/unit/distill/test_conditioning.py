"""Prompts encoded, sliced, joined, and given to a UNet."""

from __future__ import annotations

import torch
from distill_fixtures import tiny_conditioning, tiny_draws, tiny_text, tiny_unet

from distill.networks.conditioning import Conditioning, guided, predict


def _with_ids(num: int) -> Conditioning:
    plain = tiny_conditioning(num)
    ids_BS = torch.arange(6.0).repeat(num, 1)
    return Conditioning(plain.text_embeds_BLD, plain.pooled_BD, ids_BS)


def test_rows_are_taken_joined_and_repeated() -> None:
    whole = _with_ids(4)
    joined = Conditioning.cat([whole[:1], whole[torch.tensor([3, 1])]])
    assert len(joined) == 3
    torch.testing.assert_close(joined.text_embeds_BLD[1], whole.text_embeds_BLD[3])
    torch.testing.assert_close(joined.pooled_BD[2], whole.pooled_BD[1])
    assert joined.time_ids_BS is not None and joined.time_ids_BS.shape == (3, 6)
    assert whole[:1].expand(5).pooled_BD.shape == (5, 32)
    assert whole.to(torch.float64).text_embeds_BLD.dtype == torch.float64


def test_only_sdxls_kind_adds_arguments() -> None:
    assert set(tiny_conditioning().unet_arguments()) == {"encoder_hidden_states"}
    added = _with_ids(2).unet_arguments()["added_cond_kwargs"]
    assert set(added) == {"text_embeds", "time_ids"}


@torch.no_grad()
def test_guidance_moves_away_from_the_empty_prompt() -> None:
    unet, conditioning = tiny_unet().eval(), tiny_conditioning()
    empty = tiny_conditioning(name="empty")
    noisy, timestep_B = tiny_draws().normal("noisy", (4, 8, 8)), torch.tensor([10, 900])
    plain = predict(unet, noisy, timestep_B, conditioning)
    free = predict(unet, noisy, timestep_B, empty)
    for guidance in (1.0, 0.0, 3.0):
        found = guided(unet, noisy, timestep_B, conditioning, empty=empty, guidance=guidance)
        torch.testing.assert_close(found, free + guidance * (plain - free), atol=1e-5, rtol=1e-4)
    assert (plain - free).abs().max() > 1e-4


@torch.no_grad()
def test_the_pooled_vector_has_seen_the_whole_prompt() -> None:
    text = tiny_text()
    both = text.encode(text.tokens(["a red circle", "a red square"]))
    assert len(both) == 2
    assert (both.pooled_BD[0] - both.pooled_BD[1]).abs().max() > 1e-3
