"""Captioned pictures: read from disk, held in memory, drawn for training."""

from distill.dataset.pictures import (
    Pictures,
    filter_pictures,
    for_training,
    load_heldout,
    load_pictures,
    probe_prompts,
    to_model_range,
    to_uint8,
)

__all__ = [
    "Pictures",
    "filter_pictures",
    "for_training",
    "load_heldout",
    "load_pictures",
    "probe_prompts",
    "to_model_range",
    "to_uint8",
]
