"""Sets of captioned pictures, as the commands use them: counted, precomputed, opened for training.

Owns which of the ways to have a set the config asks for, and where in a run folder it is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from distill.config import ConfigError, RunConfig
from distill.dataset import (
    PictureSource,
    Prefetched,
    Slices,
    Source,
    StreamSource,
    filter_pictures,
    for_training,
    load_pictures,
    open_rows,
    probe_prompts,
)
from distill.samples.precompute import precompute
from distill.samples.source import PrecomputedSamples, StreamedSamples
from distill.samples.synthetic import Drawing
from distill.student import Samples
from distill.teacher import CaptionedLatents
from distill.teachers.base import Teacher

_NUM_PROMPTS = 36
_PRECOMPUTED, _INDEX = "precomputed", "index"


def describe(config: RunConfig, run_folder: Path) -> Iterator[str]:
    """What the training would read, line by line."""
    if config.data.access == "stream":
        source = _stream(config, run_folder)
        yield f"{len(source)} rows in a stream, decoded as they are drawn"
        for caption in _spread(source.captions(5), 5):
            yield f"  {caption}"
        return
    pictures = load_pictures(config.data)
    chosen = filter_pictures(pictures, config.data)
    yield f"{len(pictures)} pictures read, {pictures.num_skipped} rows skipped"
    num_captions = sum(map(len, chosen.captions))
    num_concepts = len(set(chosen.names) - {""})
    named = f"{num_concepts} concepts, " if num_concepts else ""
    yield f"{len(chosen)} chosen, {named}{num_captions} captions"
    for style, num in sorted(Counter(chosen.styles).items()) if any(chosen.styles) else ():
        yield f"  {style or '(no style)'}: {num}"
    yield "for example: " + "; ".join(probe_prompts(chosen, 5))


def precompute_set(
    config: RunConfig,
    run_folder: Path,
    teacher: Teacher,
    dtype: str,
    rows_per_shard: int,
    drawing: Drawing | None = None,
) -> str:
    """Encode the whole set into the run folder, or have its pictures drawn; say what was done."""
    folder = run_folder / _PRECOMPUTED
    source = _source(config, run_folder)
    num = precompute(
        source, teacher, folder, dtype=dtype, rows_per_shard=rows_per_shard, drawing=drawing
    )
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    return (
        f"{num} shards written, {len(source)} rows in all, {num_bytes / 1e6:.1f} MB in {folder}; "
        "next: train with --set data.access=precomputed"
    )


def open_samples(
    config: RunConfig, run_folder: Path, teacher: Teacher, slices: Slices | None = None
) -> tuple[Samples, list[str]]:
    """What a distillation draws from, and prompts for its sheets.

    Args:
        config: `data.access` says which way.
        run_folder: holds what was precomputed, and the indexes of streamed files.
        teacher: gives the encoders.
        slices: the part of the batch that this process takes; None takes all of it.

    Raises:
        ConfigError: there is nothing to read, or it does not fit the teacher.
    """
    batch_size = config.student.optimizer.batch_size
    if config.data.access == "precomputed":
        read = PrecomputedSamples(
            run_folder / _PRECOMPUTED,
            teacher,
            batch_size,
            seed=config.seed,
            num_together=config.data.shuffle_blocks,
        )
        return read, _spread(read.captions(_NUM_PROMPTS), _NUM_PROMPTS)
    if config.data.access == "stream":
        ahead = Prefetched(_stream(config, run_folder), slices or Slices(batch_size))
        prompts = _spread(ahead.captions(_NUM_PROMPTS), _NUM_PROMPTS)
        return StreamedSamples(ahead, teacher, batch_size), prompts
    pictures = for_training(filter_pictures(load_pictures(config.data), config.data), config.data)
    held = CaptionedLatents(teacher.codec, teacher.text, pictures)
    held.embed_captions(teacher.text)
    return held, probe_prompts(pictures, _NUM_PROMPTS)


def _source(config: RunConfig, run_folder: Path) -> Source:
    """The set as `data.access` and `data.path` name it, not yet encoded."""
    if config.data.access == "stream":
        return _stream(config, run_folder)
    pictures = filter_pictures(load_pictures(config.data), config.data)
    return PictureSource(for_training(pictures, config.data), config.seed)


def _stream(config: RunConfig, run_folder: Path) -> StreamSource:
    if config.data.path == "shapes":
        raise ConfigError('data.access="stream" reads files: name them in data.path')
    rows = open_rows(config.data.path, config.data, "data.path", run_folder / _INDEX)
    return StreamSource(rows, config.data, config.seed)


def _spread(texts: Sequence[str], num: int) -> list[str]:
    return list(texts[:: max(1, len(texts) // num)][:num])
