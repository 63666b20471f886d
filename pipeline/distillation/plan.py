"""Check a distillation before it starts."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.config import digest as digest_of
from pipeline.config import to_dict
from pipeline.dataset.collection import ImageCollection, find_images, image_facts
from pipeline.distillation.answers import as_reader
from pipeline.distillation.config import (
    EXCLUDED_SETTINGS,
    RECORDED_AS,
    RECORDED_SETTINGS,
    DistillationConfig,
    list_images,
)
from pipeline.distillation.students import Student, build_student, student_or_teacher_reads_kept
from pipeline.errors import ConfigError
from pipeline.inputs import check_inputs, check_planned, find_labeled, other_teacher
from pipeline.log import announce, logger
from pipeline.models import LoadedModel, check_savable, load_model, weight_digest
from pipeline.outputs import find_config, identifying_settings, make_document, without_locations
from pipeline.outputs.owners import check_apart, check_place
from pipeline.synthesis.input_synthesis import ImagesToMake, check_all_come, names_config, plan_images, planned_images
from pipeline.vetting import check_teacher
from pipeline.vit.families import refusal
from pipeline.vit.subset import SubsetViT
from pipeline.workers import with_absolute_paths


@dataclass(frozen=True)
class DistillationPlan:
    """A distillation whose settings, models and images were checked.

    Attributes:
        config: settings with absolute local paths, because workers have other working folders.
        document: content of `config.json`: everything that decides the student, as plain data, and its digest.
        teacher: the teacher as the driver loaded it.
        student: the untrained student as the driver made it.
        images, labeled: the training images, and the labeled images; the latter None without any.
        to_make: the synthesis of the training images, if its config was given. `images` are then the planned ones.
    """

    config: DistillationConfig
    document: dict[str, Any]
    teacher: LoadedModel
    student: Student
    images: ImageCollection
    labeled: ImageCollection | None
    to_make: ImagesToMake | None

    @property
    def digest(self) -> str:
        return self.document["digest"]


def plan_distillation(config: DistillationConfig) -> DistillationPlan:
    """Check on the driver everything that can be checked without Ray; writes nothing.

    Raises:
        ConfigError, ModelError, CheckpointError, DatasetError: see `distill`.
    """
    check_place(config.output, shared=config.workers.size > 0)
    teacher = load_model(config.teacher)
    announce(teacher.notices)
    check_teacher(teacher)
    student = build_student(config.student, teacher, seed=config.seed)
    announce(student.notices)
    # A student that cannot be saved must not be trained first.
    check_savable(student.model)
    _check_tokens(config, as_reader(teacher.model), student)
    if config.augment is not None:
        config.augment.check_channels("augment", teacher.input_size[0])
    to_make = plan_images(config.images, (config.teacher, teacher)) if names_config(config.images) else None
    kept = student_or_teacher_reads_kept(teacher, student)
    if to_make is None:
        images = _find_images(config, teacher, reads_kept=kept)
    else:
        images = _plan_images(config, teacher, to_make, reads_kept=kept)
    labeled = None
    if config.labeled is not None:
        found = find_labeled(config.labeled, teacher, config.labeled_split, reads_kept=kept)
        labeled = ImageCollection.of(found)
    check_apart(config.output, (*images.sources, *(() if labeled is None else labeled.sources)))
    _check_batch_norm(config, student, images.num_rows)
    _warn_of_few(config, images.num_rows)
    _warn_of_other_teachers(images, teacher)
    document = _document(config, teacher, student, images, labeled, as_made=to_make is not None)
    there = find_config(config.output, "distill", document)
    if there is not None:
        # Checkpoints carry the digest of the run that started; an earlier version may have computed it from more.
        document["digest"] = there["digest"]
    return DistillationPlan(with_absolute_paths(config), document, teacher, student, images, labeled, to_make)


def _find_images(config: DistillationConfig, teacher: LoadedModel, *, reads_kept: bool) -> ImageCollection:
    listed = list_images(config)
    uris, times = [each.uri for each in listed], [each.weight for each in listed]
    images = find_images(uris, split=config.images_split, times=times)
    if not config.allow_incomplete:
        images.check_complete()
    check_inputs(images, teacher, labels=config.label_weight > 0, reads_kept=reads_kept)
    return images


def _plan_images(
    config: DistillationConfig, teacher: LoadedModel, to_make: ImagesToMake, *, reads_kept: bool
) -> ImageCollection:
    if config.allow_incomplete:
        raise ConfigError(
            f"allow_incomplete is set, and which images {to_make.path!r} will fail to make is not known before: make "
            "them with jobs.synthesize, then give the dataset as images"
        )
    check_all_come(to_make)
    images = planned_images(to_make, split=config.images_split)
    check_planned(images, teacher, labels=config.label_weight > 0, reads_kept=reads_kept)
    return images


def _document(
    config: DistillationConfig,
    teacher: LoadedModel,
    student: Student,
    images: ImageCollection,
    labeled: ImageCollection | None,
    *,
    as_made: bool = False,
) -> dict[str, Any]:
    """Return the content of `config.json`: what decides the student, its digest, and the settings as given."""
    facts = {
        "config": without_locations(
            identifying_settings(
                config, recorded=RECORDED_SETTINGS, excluded=EXCLUDED_SETTINGS, recorded_as=RECORDED_AS
            )
        ),
        "teacher": teacher.digest,
        "student": weight_digest(student.model),
        "class_names_sha256": digest_of({"names": teacher.class_names}),
        # Facts of the images, because the same folder may hold another dataset than before.
        **image_facts(images),
        # Images that are read as they are made have another order in the first epoch.
        **({"as_made": True} if as_made else {}),
        "labelled": None if labeled is None else image_facts(labeled),
    }
    return make_document("distill", facts, to_dict(config))


def _warn_of_few(config: DistillationConfig, num_images: int) -> None:
    if num_images < config.batch_size:
        logger.warning(
            f"distill: {num_images} {'image is' if num_images == 1 else 'images are'} less than one batch of "
            f"{config.batch_size}, so each epoch is a single step: a student learns little from so few"
        )


def _warn_of_other_teachers(images: ImageCollection, teacher: LoadedModel) -> None:
    """Warn of images that were made from another model. They may be meant: one teacher can answer images of another."""
    for source in images.sources:
        found = other_teacher(source, teacher)
        if found is not None:
            logger.warning(f"distill: {found}: the teacher answers them all the same")


def _check_batch_norm(config: DistillationConfig, student: Student, num_images: int) -> None:
    """Check that BatchNorm gets two values per channel: the last feature maps of a small image may have one pixel.

    A line says where the student depends on the number of workers. SyncBatchNorm would change that, but it needs a GPU,
    and would wait for ever for a worker that has run out of images.
    """
    if student.linear_head or not any(isinstance(module, _BatchNorm) for module in student.modules()):
        return
    family, workers = type(student.model).__name__, max(1, config.workers.size)
    smallest = num_images // -(-num_images // config.batch_size) // workers
    if smallest < 2:
        raise ConfigError(
            f"the student, a {family}, has BatchNorm, but batch_size {config.batch_size} leaves "
            f"{smallest} of {num_images} images per step and worker"
        )
    if workers > 1:
        logger.info(
            f"note: the student, a {family}, has BatchNorm: each of {workers} workers normalizes over its own share of "
            f"a batch, {config.batch_size // workers} images or more, so other numbers of workers train other students"
        )


def _check_tokens(config: DistillationConfig, teacher: nn.Module, student: Student) -> None:
    if not config.token_weight:
        return
    if not isinstance(teacher, SubsetViT):
        raise ConfigError(
            f"token_weight is {config.token_weight}, but the teacher, a {type(teacher).__name__}, reads filled images "
            f"and has no tokens to compare: {refusal(teacher)}"
        )
    if student.vit is None:
        raise ConfigError(
            f"token_weight is {config.token_weight}, but the student, a {type(student.model).__name__}, does not read "
            f"the teacher's grid of {teacher.grid_size}x{teacher.grid_size} patches and has no tokens to compare"
        )
    for what, own, other in (
        ("width", student.vit.embed_dim, teacher.embed_dim),
        ("number of prefix tokens", student.vit.num_prefix_tokens, teacher.num_prefix_tokens),
    ):
        if own != other:
            raise ConfigError(
                f"token_weight is {config.token_weight}, but the student's {what} is {own} and the teacher's {other}"
            )
