"""The training of a small autoencoder of one's own.

Owns building it, its losses and its run. Knows nothing of text or diffusion.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC
from torch.nn import functional

from distill.config import AutoencoderConfig, RunConfig
from distill.dataset import Pictures, to_model_range, to_uint8
from distill.grid import grid_image
from distill.networks.codec import raw_encode
from distill.training.clipping import clipped_step
from distill.training.device import half_precision, pick_device
from distill.training.optimizers import adamw

# Shape suffixes: B batch, C channel, H/W pixels, h/w latent cells.


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderDC:
    """Return an untrained autoencoder with `config.downscale` pixels per latent cell."""
    num_levels = len(config.block_out_channels)
    no_attention = ((),) * num_levels
    return AutoencoderDC(
        latent_channels=config.latent_channels,
        encoder_block_out_channels=config.block_out_channels,
        decoder_block_out_channels=config.block_out_channels,
        encoder_layers_per_block=config.encoder_layers,
        decoder_layers_per_block=config.decoder_layers,
        encoder_qkv_multiscales=no_attention,
        decoder_qkv_multiscales=no_attention,
    )


class AutoencoderTrainer:
    """Trains on random crops with an L1 and an L2 loss, and noise on the latents."""

    name = "autoencoder"

    def __init__(self, run: RunConfig, pictures: Pictures) -> None:
        """Build the model and its optimizer; every picture is used, whatever its concept."""
        config = run.autoencoder
        self.config = config
        self.optimizer = config.optimizer
        self.device = pick_device(run.device)
        self.model = build_autoencoder(config).to(self.device)
        self._images = torch.from_numpy(pictures.images_NHWC).to(self.device)
        self._probe = self._images[:: max(1, len(pictures) // 16)][:16]
        self._bf16 = run.bf16
        self._adam = adamw(self.model.parameters(), config.optimizer)

    def _draw_crops(self) -> torch.Tensor:
        num, size = self.optimizer.batch_size, self._images.shape[1]
        crop = min(self.config.crop_px, size)
        which = torch.randint(len(self._images), (num,)).tolist()
        corners = torch.randint(size - crop + 1, (num, 2)).tolist()
        return to_model_range(
            torch.stack(
                [
                    self._images[i, y : y + crop, x : x + crop]
                    for i, (y, x) in zip(which, corners, strict=True)
                ]
            )
        )

    def iterate(self, lr_scale: float) -> dict[str, float]:
        """One step on one batch of crops; reports the loss and the PSNR of the batch in dB."""
        images_BCHW = self._draw_crops()
        for group in self._adam.param_groups:
            group["lr"] = self.optimizer.lr * lr_scale
        with half_precision(self.device, enabled=self._bf16):
            latents_BChw = raw_encode(self.model, images_BCHW)
            rms = latents_BChw.float().pow(2).mean().sqrt()
            noise = torch.randn_like(latents_BChw) * (self.config.latent_noise * rms.detach())
            decoded_BCHW = self.model.decode(latents_BChw + noise).sample.float()
        l1 = functional.l1_loss(decoded_BCHW, images_BCHW)
        l2 = functional.mse_loss(decoded_BCHW, images_BCHW)
        # Squared logarithm: as strong at a hundredth of the wanted size as at a hundredfold.
        size = rms.clamp_min(1e-12).log().pow(2)
        self._adam.zero_grad(set_to_none=True)
        (l1 + l2 + self.config.latent_penalty * size).backward()
        taken = clipped_step(self._adam, self.model.parameters(), self.optimizer.grad_clip)
        psnr_db = 10 * torch.log10(4.0 / l2.detach().clamp_min(1e-12))
        return {"loss": (l1 + l2).item(), "psnr_db": psnr_db.item(), "rms": rms.item(), **taken}

    @torch.no_grad()
    def sample_grid(self) -> Any:
        """Originals and their reconstructions, side by side in rows of eight."""
        images_BCHW = to_model_range(self._probe)
        decoded = to_uint8(self.model.decode(raw_encode(self.model, images_BCHW)).sample)
        rows = [
            np.concatenate([o, d]) for o, d in zip(self._probe.cpu().numpy(), decoded, strict=True)
        ]
        return grid_image(np.stack(rows), num_columns=8)

    def state_dict(self) -> dict[str, Any]:
        """Model and optimizer."""
        return {"model": self.model.state_dict(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.model.load_state_dict(state["model"])
        self._adam.load_state_dict(state["adam"])

    @torch.no_grad()
    def save_model(self, folder: Path) -> None:
        """Measure the latents' scale, then write a diffusers folder."""
        sample = self._images[:: max(1, len(self._images) // 512)]
        total, num = 0.0, 0
        for images in sample.split(64):
            latents_BChw = raw_encode(self.model, to_model_range(images))
            total += latents_BChw.pow(2).sum().item()
            num += latents_BChw.numel()
        self.model.register_to_config(scaling_factor=float((total / num) ** -0.5))
        self.model.save_pretrained(folder)
