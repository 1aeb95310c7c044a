"""`onestep-distill evaluate`: a run's models, options and pictures to figures and sheets.

Owns the files that an evaluation leaves in the run folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from distill.config import RunConfig
from distill.dataset import Pictures, filter_pictures, load_heldout, load_pictures
from distill.evaluation.clip import Clip
from distill.evaluation.dinov2 import Dino
from distill.evaluation.feature_judge import FeatureJudge
from distill.evaluation.inception import Inception
from distill.evaluation.judges import ClipJudge, Judge, PixelJudge
from distill.evaluation.networks import Network
from distill.evaluation.options import EvaluateOptions
from distill.evaluation.prompts import PromptSet, Size, joined, one_prompt_per_concept, prompt_sets
from distill.evaluation.results import EVALUATION_FILE
from distill.evaluation.running import Outcome, Subject, draw_all, evaluate
from distill.evaluation.samplers import Models, student_samplers, teacher_samplers, tuned_guidance
from distill.evaluation.squeezenet import SqueezeNet
from distill.evaluation.tables import score_tables, timing_table
from distill.grid import grid_image, labelled_rows
from distill.model_spec import timesteps_by_steps
from distill.networks.unet import load_unet
from distill.teachers.base import Teacher
from distill.training.device import precision_words

SHEET_FOLDER = "evaluation"


def feature_networks(options: EvaluateOptions, device: torch.device) -> list[Network]:
    """The networks that the options name, those that may choose first.

    Raises:
        ConfigError: a file is missing or damaged, or a package is missing.
    """
    networks: list[Network] = []
    if options.features is not None:
        networks.append(SqueezeNet(options.features, device))
    if options.inception is not None:
        networks.append(Inception(options.inception, device))
    if options.dino is not None:
        networks.append(Dino(options.dino, device))
    return networks


def load_judges(
    options: EvaluateOptions, gallery: Pictures, device: torch.device
) -> tuple[FeatureJudge, list[Judge]]:
    """Every judge; the first alone may choose between settings."""
    clip = None
    if options.clip is not None:  # a missing file is told before the gallery is described
        clip = Clip.load(options.clip, options.clip_model, device)
    features = [
        FeatureJudge(network, gallery, has_intervals=options.has_intervals)
        for network in feature_networks(options, device)
    ]
    judges: list[Judge] = [*features, PixelJudge()]
    return features[0], judges if clip is None else [*judges, ClipJudge(clip)]


@dataclass(frozen=True)
class Asked:
    """What a run's configuration gives to judge by.

    Attributes:
        sets: of prompts.
        pictures: the training set.
        gallery: the training set and what was held out.
    """

    sets: list[PromptSet]
    pictures: Pictures
    gallery: Pictures

    @classmethod
    def of(cls, config: RunConfig, size: Size) -> Asked:
        """Read the pictures and choose the prompts."""
        pictures = filter_pictures(load_pictures(config.data), config.data)
        heldout = load_heldout(config.data)
        recolourable = None
        if config.data.recoloured_share > 0:
            rare = config.data.rare_groups
            apt = [i for i, group in enumerate(pictures.groups) if group not in rare]
            recolourable = pictures.select(apt)
        sets = prompt_sets(pictures, heldout, size, recolourable)
        return cls(sets, pictures, pictures if heldout is None else joined(pictures, heldout))


def load_models(config: RunConfig, run_folder: Path, teacher: Teacher) -> Models:
    """The run's student beside its teacher.

    Raises:
        ConfigError: the student is missing.
    """
    student = load_unet(run_folder / "student" / "model", teacher.codec.device).eval()
    cells = config.data.image_size_px // teacher.codec.downscale
    return Models(
        teacher,
        student,
        (teacher.codec.latent_channels, cells, cells),
        timesteps_by_steps(config.student.timesteps),
        config.bf16,
    )


def evaluate_models(
    models: Models, config: RunConfig, options: EvaluateOptions, asked: Asked
) -> Outcome:
    """Load the judges, tune the guidance where asked, and score every sampler."""
    device = models.teacher.codec.device
    students = student_samplers(models, options.student_steps)
    chooser, judges = load_judges(options, asked.gallery, device)
    guidance = options.guidance
    sweep: dict[str, float] = {}
    if options.guidance_sweep:
        guidance, sweep = tuned_guidance(models, options, asked.sets[0], chooser)
    settings = {
        **options.to_json(),
        "guidance": guidance,
        "guidance_sweep": sweep,
        "precision": precision_words(models.teacher.codec.device, enabled=models.is_bf16),
        "device": device.type,
        "image_size_px": config.data.image_size_px,
    }
    samplers = [*students, *teacher_samplers(models, options, guidance)]
    subject = Subject(config.name, samplers, models.through_codec)
    return evaluate(subject, asked.sets, judges, settings)


def evaluate_run(
    config: RunConfig, run_folder: Path, teacher: Teacher, options: EvaluateOptions
) -> Outcome:
    """Evaluate a finished run and leave evaluation.json, sheets and grid.webp in its folder.

    Raises:
        ConfigError: a stage, a file or a package is missing.
    """
    models = load_models(config, run_folder, teacher)
    asked = Asked.of(config, Size(options.max_pictures, options.seeds_per_prompt))
    outcome = evaluate_models(models, config, options, asked)
    outcome.evaluation.save(run_folder)
    folder = run_folder / SHEET_FOLDER
    folder.mkdir(exist_ok=True)
    for kind, (prompts, rows) in outcome.sheets.items():
        labelled_rows(prompts, rows).save(folder / f"{kind.replace(' ', '-')}.webp", quality=90)
    concepts = one_prompt_per_concept(asked.pictures)
    images_NHWC = draw_all(student_samplers(models, (1,))[0].draw, concepts)
    grid_image(images_NHWC, num_columns=12).save(run_folder / "grid.webp", quality=90)
    return outcome


def print_outcome(outcome: Outcome, run_folder: Path) -> None:
    """Tell a person what was found and where it lies."""
    for table in score_tables([outcome.evaluation], has_intervals=False):
        print(table.markdown())
    print(timing_table(outcome.evaluation).markdown())
    print(f"{run_folder / EVALUATION_FILE}; pictures in {run_folder / SHEET_FOLDER}; next: ")
    print(f"  onestep-distill report {run_folder}")
