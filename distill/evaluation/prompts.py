"""Which prompts are drawn, with which seeds, and which real pictures are right answers to them.

Owns the kinds of prompts. The choice is by hash, so that every model is asked the same, whatever
the order of its files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from zlib import crc32

import numpy as np

from distill.config import ConfigError
from distill.dataset import Pictures
from distill.dataset.recolour import HUES, dominant_hue, new_colours, plain_name, rotate_hue

WITH_STYLE, WITHOUT_STYLE, ALL_PROMPTS = "with style", "without style", "all prompts"
_MAX_REPEATED = 64  # captions that are drawn with several seeds


@dataclass(frozen=True)
class Size:
    """How much is drawn.

    Attributes:
        max_pictures: per kind of prompts and sampler.
        num_seeds: pictures of each prompt that has several right answers.
    """

    max_pictures: int = 1000
    num_seeds: int = 4


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one kind, one entry per picture to draw.

    Attributes:
        kind: what they have in common.
        prompts: with repeats where a prompt is drawn with several seeds.
        seeds: of each picture.
        concepts: asked for, or () where the source names none.
        styles: asked for, "" where the prompt leaves it open.
        groups: of the concepts, "" where there are none.
        real: right answers, as many as there are; their number is part of every result.
        colours: asked for, or ().
        floor: real pictures that were left out of `real`: what a perfect model would score.
        num_in_set: the first so many are held against `real` as a set; the rest, further seeds of
            some prompts, count for diversity alone.
    """

    kind: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    real: Pictures
    concepts: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    floor: Pictures | None = None
    num_in_set: int = 0

    def __post_init__(self) -> None:
        """Count every picture where nothing else is said."""
        if not self.num_in_set:
            object.__setattr__(self, "num_in_set", len(self.prompts))

    def first(self, num: int) -> PromptSet:
        """The first pictures alone, held against all real ones, as a set of another kind."""
        num = min(num, self.num_in_set)
        return PromptSet(
            f"{self.kind}, first {num}",
            self.prompts[:num],
            self.seeds[:num],
            self.real,
            self.concepts[:num],
            self.styles[:num],
            self.groups[:num],
            self.colours[:num],
        )

    @property
    def fingerprint(self) -> str:
        """Hash of what is asked and of the real pictures; equal ones can be compared."""
        digest = hashlib.sha256(repr((self.prompts, self.seeds)).encode())
        digest.update(np.ascontiguousarray(self.real.images_NHWC).tobytes())
        return digest.hexdigest()[:16]


def chosen(keys: Sequence[str], num: int) -> list[int]:
    """Indices of at most `num` entries, picked by their hash, in their own order."""
    by_hash = sorted(range(len(keys)), key=lambda i: (crc32(keys[i].encode()), i))
    return sorted(by_hash[:num])


def prompt_sets(
    pictures: Pictures,
    heldout: Pictures | None,
    size: Size,
    recolourable: Pictures | None = None,
) -> list[PromptSet]:
    """Every kind that the pictures allow.

    With names: prompts with a style, without one, held-out pairs, and colours that a thing was
    never shown in. Without names, as of a folder of one's own: the pictures' captions.

    Args:
        pictures: the training set.
        heldout: pairs of concept and style kept from training, or other pictures with captions.
        size: how much.
        recolourable: the pictures that training shows in other colours, where it does.
    """
    if not any(pictures.names):
        sets = [caption_set(pictures, size)]
        return sets if heldout is None else [*sets, _answers("held-out captions", heldout, size)]
    sets = []
    styled = [i for i, style in enumerate(pictures.styles) if style]
    if styled:
        sets.append(_styled_set(WITH_STYLE, pictures.select(styled), size))
    sets.append(_unstyled_set(pictures, size))
    if heldout is not None:
        sets.append(_styled_set("held-out pairs", heldout, size))
    if recolourable is not None:
        sets.append(colour_set(recolourable, size))
    return sets


def together(kind: str, sets: Sequence[PromptSet]) -> PromptSet:
    """Several sets as one, the pictures in their order; a real one that several have counts once.

    Sets whose seeds repeat a prompt for its diversity alone have no place in it.
    """
    assert all(one.num_in_set == len(one.prompts) for one in sets), "every picture counts"
    real = sets[0].real
    for one in sets[1:]:
        real = joined(real, one.real)
    first: dict[bytes, int] = {}
    for index, image in enumerate(real.images_NHWC):
        first.setdefault(np.ascontiguousarray(image).tobytes(), index)
    return PromptSet(
        kind,
        tuple(chain.from_iterable(one.prompts for one in sets)),
        tuple(chain.from_iterable(one.seeds for one in sets)),
        real.select(sorted(first.values())),
        tuple(chain.from_iterable(one.concepts for one in sets)),
        tuple(chain.from_iterable(one.styles for one in sets)),
        tuple(chain.from_iterable(one.groups for one in sets)),
    )


def joined(a: Pictures, b: Pictures) -> Pictures:
    """Two sets of pictures in one."""
    return Pictures(
        np.concatenate([a.images_NHWC, b.images_NHWC]),
        a.captions + b.captions,
        a.names + b.names,
        a.styles + b.styles,
        a.groups + b.groups,
    )


def styled_prompt(name: str, style: str) -> str:
    """The prompt for a concept in a style, or in none."""
    return f"{name}, {style}" if style else name


def _styled_set(kind: str, pictures: Pictures, size: Size) -> PromptSet:
    keys = [styled_prompt(n, s) for n, s in zip(pictures.names, pictures.styles, strict=True)]
    real = pictures.select(chosen(keys, size.max_pictures))
    prompts = tuple(styled_prompt(n, s) for n, s in zip(real.names, real.styles, strict=True))
    return PromptSet(
        kind, prompts, tuple(range(len(prompts))), real, real.names, real.styles, real.groups
    )


def _unstyled_set(pictures: Pictures, size: Size) -> PromptSet:
    first: dict[str, int] = {}
    for i, name in enumerate(pictures.names):
        first.setdefault(name, i)
    names = list(first)
    names = [names[i] for i in chosen(names, max(2, size.max_pictures // size.num_seeds))]
    asked = set(names)
    repeated = tuple(name for name in names for _ in range(size.num_seeds))
    return PromptSet(
        WITHOUT_STYLE,
        repeated,
        tuple(range(len(repeated))),
        pictures.select([i for i, name in enumerate(pictures.names) if name in asked]),
        repeated,
        ("",) * len(repeated),
        tuple(pictures.groups[first[name]] for name in repeated),
    )


def caption_set(pictures: Pictures, size: Size) -> PromptSet:
    """First captions of one half of the pictures, held against the other half.

    The halves are told apart by each picture's hash. Both were trained on: the split keeps a model
    that repeats its pictures from a perfect score, and says how far two sets of real pictures are.

    Raises:
        ConfigError: there are too few pictures.
    """
    hashes = [crc32(np.ascontiguousarray(image).tobytes()) for image in pictures.images_NHWC]
    asked = pictures.select([i for i, value in enumerate(hashes) if value % 2 == 0])
    other = pictures.select([i for i, value in enumerate(hashes) if value % 2])
    if min(len(asked), len(other)) < 2:
        raise ConfigError(f"{len(pictures)} pictures are too few to judge by: give more, or names")
    answers = _answers("captions", asked, size)
    return replace(answers, real=other, floor=answers.real)


def _answers(kind: str, pictures: Pictures, size: Size) -> PromptSet:
    """One caption of each picture, and further seeds of some of them."""
    real = pictures.select(chosen([texts[0] for texts in pictures.captions], size.max_pictures))
    prompts = [texts[0] for texts in real.captions]
    again = chosen(prompts, _MAX_REPEATED)
    repeated = [prompts[i] for _ in range(size.num_seeds - 1) for i in again]
    num = len(prompts) + len(repeated)
    return PromptSet(kind, (*prompts, *repeated), tuple(range(num)), real, num_in_set=len(prompts))


def colour_set(pictures: Pictures, size: Size) -> PromptSet:
    """Things in colours that were kept from training, answered by recoloured real pictures.

    Raises:
        ConfigError: no picture can be recoloured.
    """
    existing = set(pictures.names)
    found = [
        (i, colour, hue)
        for i, name in enumerate(pictures.names)
        if name and (hue := dominant_hue(pictures.images_NHWC[i])) is not None
        for colour in new_colours(name, hue, held_out=True)
        if f"{colour} {plain_name(name)}" not in existing
    ]
    if not found:
        raise ConfigError("--colours: no picture of the set has one ruling colour")
    keys = [f"{colour} {pictures.names[i]} {pictures.styles[i]}" for i, colour, _ in found]
    found = [found[k] for k in chosen(keys, size.max_pictures)]
    rows = pictures.select([i for i, _, _ in found])
    names = tuple(plain_name(name) for name in rows.names)
    images = [
        rotate_hue(image, HUES[colour] - hue)
        for image, (_, colour, hue) in zip(rows.images_NHWC, found, strict=True)
    ]
    colours = tuple(colour for _, colour, _ in found)
    prompts = tuple(
        styled_prompt(f"{colour} {name}", style)
        for colour, name, style in zip(colours, names, rows.styles, strict=True)
    )
    real = Pictures(np.stack(images), tuple((p,) for p in prompts), names, rows.styles, rows.groups)
    seeds = tuple(range(len(prompts)))
    return PromptSet(
        "colours held out", prompts, seeds, real, names, rows.styles, rows.groups, colours
    )


def one_prompt_per_concept(pictures: Pictures, max_prompts: int = 240) -> list[str]:
    """Concepts, the styles each has taking turns; captions where nothing has a name."""
    if not any(pictures.names):
        captions = [texts[0] for texts in pictures.captions]
        return [captions[i] for i in chosen(captions, max_prompts)]
    styles_of: dict[str, list[str]] = {}
    for name, style in zip(pictures.names, pictures.styles, strict=True):
        styles_of.setdefault(name, []).append(style)
    names = sorted(styles_of)
    return [
        styled_prompt(names[i], sorted(styles_of[names[i]])[k % len(styles_of[names[i]])])
        for k, i in enumerate(chosen(names, max_prompts))
    ]
