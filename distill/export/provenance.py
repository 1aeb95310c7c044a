"""Where a model and its pictures come from, for machines: provenance.json.

Owns a document that a signer can put into a C2PA manifest as it stands: who made the model, from
what, and the IPTC's word for pictures made by a trained model. Nothing is signed here.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from distill.config import RunConfig
from engines.spec import sha256_of

PROVENANCE_FILE = "provenance.json"
# Source: IPTC NewsCodes, digital source type.
TRAINED_ALGORITHMIC_MEDIA = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_WEIGHTS = (".safetensors", ".onnx")


def provenance(config: RunConfig, folder: Path, teacher: str) -> dict[str, Any]:
    """The document for an exported folder whose weights are in place.

    Args:
        config: of the run.
        folder: what is exported.
        teacher: name of the teacher, or how it was trained.
    """
    weights = {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix in _WEIGHTS
    }
    generator = {"name": "onestep", "version": version("onestep")}
    return {
        "format_version": 1,
        "generator": generator,
        "model": {
            "name": config.name,
            "license": config.license,
            "sha256": digest_of(weights),
            "weights": weights,
        },
        "teacher": teacher,
        "training_data": {
            "source": Path(config.data.path).name,
            "attribution": config.attribution,
        },
        "digital_source_type": TRAINED_ALGORITHMIC_MEDIA,
        "assertions": [
            {
                "label": "c2pa.actions.v2",
                "data": {
                    "actions": [
                        {
                            "action": "c2pa.created",
                            "digitalSourceType": TRAINED_ALGORITHMIC_MEDIA,
                            "softwareAgent": generator,
                        }
                    ]
                },
            }
        ],
    }


def digest_of(weights: dict[str, str]) -> str:
    """One digest for all weights: of the lines `sha256sum` would print, sorted by name."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(weights.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
