"""Captioned pictures: where they come from and in which order.

Two ways to have them. `Pictures` is a whole set in memory. A `Source` gives samples by their
position in an endless stream, from memory, from files as they are asked for, or read ahead; it has
no state, so that a training resumes from the number of its iteration.
"""

from distill.dataset.example import write_example
from distill.dataset.forms import open_rows
from distill.dataset.order import Order, ShuffledOrder, Slices, WeightedOrder, generator_at
from distill.dataset.pictures import (
    Pictures,
    collect,
    filter_pictures,
    for_training,
    load_heldout,
    load_pictures,
    probe_prompts,
)
from distill.dataset.rows import DamagedRow, Row, Rows, to_model_range, to_uint8
from distill.dataset.source import (
    ImageBatch,
    PictureSource,
    Prefetched,
    Source,
    StreamSource,
    chosen_caption,
)

__all__ = [
    "DamagedRow",
    "ImageBatch",
    "Order",
    "PictureSource",
    "Pictures",
    "Prefetched",
    "Row",
    "Rows",
    "ShuffledOrder",
    "Slices",
    "Source",
    "StreamSource",
    "WeightedOrder",
    "chosen_caption",
    "collect",
    "filter_pictures",
    "for_training",
    "generator_at",
    "load_heldout",
    "load_pictures",
    "open_rows",
    "probe_prompts",
    "to_model_range",
    "to_uint8",
    "write_example",
]
