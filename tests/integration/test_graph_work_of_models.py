"""The work counted from exported graphs is what torch counts when it runs the same modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engines_fixtures import tiny_autoencoder, tiny_spec, write_tiny_torch_folder
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from engines.export import export_bundle
from engines.graph_work import Graph
from engines.runtime.modules import load_modules
from engines.spec import STAGES, ModelSpec, StageName


def _flops_by_torch(
    folder: Path, stage: StageName, batch_size: int, latent_hw: tuple[int, int]
) -> int:
    spec = ModelSpec.load(folder)
    module: torch.nn.Module = getattr(load_modules(folder, spec), stage)
    latents = torch.zeros(batch_size, spec.latent.channels, *latent_hw)
    texts = torch.zeros(batch_size, spec.text.max_tokens, spec.text.width)
    inputs = {
        "text": (torch.ones(texts.shape[:2], dtype=torch.int64),),
        "denoise": (latents, torch.full((batch_size,), 999), texts),
        "decode": (latents,),
    }[stage]
    counter = FlopCounterMode(display=False)
    # Attention as plain products: torch's counter has no rule for the fused one of CPUs.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
        module(*inputs)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_stage_counts_as_in_torch(
    bundle: Path, torch_folder: Path, stage: StageName, batch_size: int
) -> None:
    work = Graph(bundle / f"{stage}.onnx").count(batch_size, (8, 8))
    assert work.flops == _flops_by_torch(torch_folder, stage, batch_size, (8, 8))
    assert work.num_bytes > 0


@pytest.mark.parametrize("stage", STAGES)
def test_a_graph_with_free_sizes_counts_as_in_torch(
    many_sizes_bundle: Path, torch_folder: Path, stage: StageName
) -> None:
    work = Graph(many_sizes_bundle / f"{stage}.onnx").count(2, (8, 16))
    assert work.flops == _flops_by_torch(torch_folder, stage, 2, (8, 16))


@pytest.mark.parametrize("class_name", ["AutoencoderTiny", "AutoencoderKL"])
def test_every_autoencoder_counts_as_in_torch(class_name: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_tiny_torch_folder(source, tiny_spec())
    torch.manual_seed(0)
    tiny_autoencoder(class_name).save_pretrained(source / "vae")
    export_bundle(source, tmp_path / "bundle")
    work = Graph(tmp_path / "bundle" / "decode.onnx").count(2, (8, 8))
    assert work.flops == _flops_by_torch(source, "decode", 2, (8, 8))
