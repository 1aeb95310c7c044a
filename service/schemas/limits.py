"""What a served model accepts and says about itself.

Knows no request: where a bundle is read is not known here either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from service.errors import InvalidRequest
from service.picture_fields import strengths_of


@dataclass(frozen=True)
class ModelLimits:
    """What the served model accepts and says about itself.

    Attributes:
        sizes_px: (width, height) pairs; the first is the default.
        max_tokens: tokens a prompt may need, begin and end included.
        count_tokens: tokens that a prompt needs, on the same count.
        created: when the bundle was written, in seconds since 1970; 0 where that is not known.
        can_start_from_image: whether pictures can be drawn from pictures.
        timesteps: descending, where a drawing of the most steps passes; it starts from a picture
            at one of them.
        num_train_timesteps: of the schedule; a strength is a share of it.
        others: models that are served beside this one, which is what is drawn with where a request
            names none.
    """

    name: str
    description: str
    license: str
    sizes_px: tuple[tuple[int, int], ...]
    max_steps: int
    max_prompt_chars: int
    max_tokens: int
    count_tokens: Callable[[str], int]
    examples: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    created: int = 0
    can_start_from_image: bool = False
    timesteps: tuple[int, ...] = ()
    num_train_timesteps: int = 1000
    others: tuple[ModelLimits, ...] = ()

    @property
    def all(self) -> tuple[ModelLimits, ...]:
        """Every model that is served, this one first."""
        return (self, *self.others)

    def named(self, name: str | None) -> ModelLimits:
        """The model that a request asks for.

        Raises:
            InvalidRequest: it is not served.
        """
        for one in self.all:
            if name in (None, one.name):
                return one
        names = [one.name for one in self.all]
        raise InvalidRequest(f"model must be {' or '.join(names)}", field="model", allowed=names)

    @property
    def strengths(self) -> tuple[float, ...]:
        """Every strength that makes a difference, descending; none without pictures."""
        if not self.can_start_from_image:
            return ()
        return strengths_of(self.timesteps, self.num_train_timesteps)
