"""Whether a picture fits its prompt, by a CLIP model through open_clip and a local checkpoint."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from distill.config import ConfigError
from distill.evaluation.networks import NetworkCard, needs, require_file, sha256_of

# Shape suffixes: N pictures, L tokens, D width of the shared space.

PAPER_MODEL = "ViT-g-14"
_OPTION = "--clip"


class ClipModel(Protocol):
    """The two towers, as open_clip's models have them."""

    def encode_image(self, image: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """Vectors of prepared pictures."""
        ...

    def encode_text(self, text: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """Vectors of token ids."""
        ...


class Clip:
    """Cosine between a picture and its prompt: the CLIP score as the papers print it (0.3)."""

    def __init__(
        self,
        model: ClipModel,
        prepare: Callable[[Image.Image], torch.Tensor],
        tokenize: Callable[[list[str]], torch.Tensor],
        card: NetworkCard,
        device: torch.device | None = None,
    ) -> None:
        """Join a model, its own preparation of pictures and its tokenizer."""
        self.card = card
        self._model = model
        self._prepare = prepare
        self._tokenize = tokenize
        self._device = device or torch.device("cpu")

    @classmethod
    def load(
        cls, path: Path, model_name: str = PAPER_MODEL, device: torch.device | None = None
    ) -> Clip:
        """Build `model_name` and load a local checkpoint; the paper's is ViT-g-14, LAION-2B.

        Raises:
            ConfigError: the file is missing or fits another model, the name is unknown, or the
                package is missing.
        """
        require_file(path, _OPTION)
        try:
            open_clip: Any = importlib.import_module("open_clip")
        except ImportError as error:
            raise needs("open_clip_torch", _OPTION, error) from error
        if model_name not in open_clip.list_models():
            raise ConfigError(f"--clip-model: open_clip has no model {model_name!r}")
        try:
            model, prepare = open_clip.create_model_from_pretrained(
                model_name, pretrained=str(path), device=device or "cpu"
            )
        except Exception as error:  # damaged bytes can lead the reader to any error
            raise ConfigError(f"{_OPTION}: {path} holds no weights of {model_name}") from error
        card = NetworkCard(
            name=f"clip {model_name}",
            weights_sha256=sha256_of(path),
            resize="the model's own, in open_clip: shorter side bicubic, centre crop",
            features="cosine of picture and prompt",
            note="the paper's network" if model_name == PAPER_MODEL else "not the paper's network",
        )
        return cls(model.eval(), prepare, open_clip.get_tokenizer(model_name), card, device)

    @torch.no_grad()
    def scores(
        self, images_NHWC: NDArray[np.uint8], prompts: Sequence[str], batch_size: int = 32
    ) -> NDArray[np.float64]:
        """(N,) cosines, not multiplied by 100."""
        rows = []
        for start in range(0, len(prompts), batch_size):
            part = slice(start, start + batch_size)
            pictures = torch.stack([self._prepare(Image.fromarray(i)) for i in images_NHWC[part]])
            tokens_NL = self._tokenize(list(prompts[part]))
            image_ND = self._model.encode_image(pictures.to(self._device))
            text_ND = self._model.encode_text(tokens_NL.to(self._device))
            cosine_N = functional.cosine_similarity(image_ND.float(), text_ND.float())
            rows.append(cosine_N.double().cpu())
        return torch.cat(rows).numpy()
