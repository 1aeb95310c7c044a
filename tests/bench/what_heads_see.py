"""How well a teacher's features tell real pictures from one-step ones, by range of noise.

Run: python -m tests.bench.what_heads_see --preset NAME --out RUN [--data SET] [--json FILE]

For each range of timesteps, real latents and the teacher's own one-step latents are noised and
looked at; each feature map is pooled to its channels' means and deviations, and a ridge regression
on half of the pictures tells the other half apart. 0.5 is a guess. It bounds what the heads can
learn at once: a range at which nothing can be told apart teaches the student nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from distill.config import RunConfig, override
from distill.draws import Draws
from distill.methods.base import Frozen
from distill.networks.features import Look, build_features
from distill.networks.unet import freeze
from distill.presets import preset
from distill.samples.sets import open_samples
from distill.step import Batch, run_student
from distill.teachers.load import load_teacher
from distill.training.device import pick_device
from distill.training.loop import set_up_torch

# Shape suffixes: N pictures, D pooled features, B batch, C channel, h/w cells.

RANGES = ((0, 60), (0, 120), (20, 300), (20, 700), (400, 700))
_RIDGE = 50.0


def pooled(feature_BChw: torch.Tensor) -> torch.Tensor:
    """Each channel's mean and deviation over the cells."""
    return torch.cat([feature_BChw.mean((2, 3)), feature_BChw.std((2, 3))], dim=1)


def told_apart(real_ND: torch.Tensor, made_ND: torch.Tensor) -> torch.Tensor:
    """For each pair how many of its two were told right, as a share, by the other half's fit."""
    order = torch.randperm(len(real_ND), generator=torch.Generator().manual_seed(0))
    share_N = torch.zeros(len(real_ND))
    halves = order.chunk(2)
    for fit, test in (halves, halves[::-1]):
        both_ND = torch.cat([real_ND[fit], made_ND[fit]])
        sign_N = torch.cat([torch.ones(len(fit)), -torch.ones(len(fit))])
        mean_D, deviation_D = both_ND.mean(0), both_ND.std(0) + 1e-6
        scaled_ND = (both_ND - mean_D) / deviation_D
        gram_DD = scaled_ND.T @ scaled_ND + _RIDGE * torch.eye(scaled_ND.shape[1])
        weight_D = torch.linalg.solve(gram_DD, scaled_ND.T @ sign_N)
        real_N = ((real_ND[test] - mean_D) / deviation_D) @ weight_D
        made_N = ((made_ND[test] - mean_D) / deviation_D) @ weight_D
        share_N[test] = ((real_N > 0).float() + (made_N < 0).float()) / 2
    return share_N


@torch.no_grad()
def measure(config: RunConfig, run: Path, num: int) -> dict[str, Any]:
    """Shares told right by range and feature map, of all pictures and of the worst quarter."""
    device = pick_device(config.device)
    teacher = load_teacher(config, run, device)
    samples, _ = open_samples(config, run, teacher)
    freeze(teacher.unet)
    frozen = Frozen(teacher.unet, teacher.codec, teacher.diffusion, teacher.pooled_width)
    draws = Draws(config.seed, 0, range(num), device)
    sample = samples.sample(draws)
    first = override(config, ["student.timestep_weights=[1,0,0,0]"]).student
    made_BChw = run_student(teacher.unet, frozen, first, Batch(sample, draws)).latents_BChw
    gap_N = (made_BChw - sample.latents_BChw).pow(2).mean((1, 2, 3))
    worst = gap_N > gap_N.quantile(0.75)
    shares: dict[str, list[dict[str, float]]] = {}
    for low, high in RANGES:
        disc = override(
            config, [f"student.discriminator.noise_timesteps=[{low},{high}]"]
        ).student.discriminator
        features = build_features(disc, teacher.unet, teacher.diffusion, device, None)
        looks = [
            features(Look(latents_BChw=latents), sample.conditioning, draws, name)
            for latents, name in ((sample.latents_BChw, "real"), (made_BChw, "fake"))
        ]
        told = [told_apart(pooled(real), pooled(made)) for real, made in zip(*looks, strict=True)]
        shares[f"{low}-{high}"] = [
            {"all": round(x.mean().item(), 3), "worst quarter": round(x[worst].mean().item(), 3)}
            for x in told
        ]
    error = round(gap_N.median().item(), 4)
    return {"num_pictures": num, "median_squared_error": error, "told_apart": shares}


def main() -> None:
    """Print the table; write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="ablation_cpu")
    parser.add_argument("--out", type=Path, required=True, help="run with a finished teacher")
    parser.add_argument("--data", default=None)
    parser.add_argument("--num", type=int, default=512, help="pictures")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    assignments = [] if args.data is None else [f"data.path={args.data}"]
    config = override(preset(args.preset), assignments)
    set_up_torch(config)
    found = measure(config, args.out, args.num)
    print("timesteps | told right, per feature map: all (the quarter furthest from real)")
    for name, maps in found["told_apart"].items():
        print(name, "|", "  ".join(f"{m['all']:.2f} ({m['worst quarter']:.2f})" for m in maps))
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
