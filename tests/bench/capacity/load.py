"""What the model and the simulation are asked about: an engine's speed and the load on it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineTime:
    """A batch of B pictures takes `fixed_s + per_image_s * B`, and B is at most `max_batch_size`.

    The worker fits the same line to its own runs (`service.batching.RunTimes`).
    """

    fixed_s: float
    per_image_s: float
    max_batch_size: int = 8

    def batch_s(self, num_images: int) -> float:
        """How long a batch runs."""
        return self.fixed_s + self.per_image_s * num_images

    @property
    def images_per_s(self) -> float:
        """In full batches one after another: what no load may exceed."""
        return self.max_batch_size / self.batch_s(self.max_batch_size)


@dataclass(frozen=True)
class OfferedLoad:
    """Pictures per second that are asked for at random times, of one batch key, and the engines."""

    rate_per_s: float
    num_engines: int = 1

    def share_of(self, engine: EngineTime) -> float:
        """Of what the engines can draw in full batches; from 1 on the line grows without end."""
        return self.rate_per_s / (self.num_engines * engine.images_per_s)
