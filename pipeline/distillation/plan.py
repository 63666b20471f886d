"""What is to be distilled, found possible before any work starts."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline import storage
from pipeline.config import digest as digest_of
from pipeline.dataset.sources import Source, find_source
from pipeline.distillation.answers import as_reader
from pipeline.distillation.config import DistillationConfig
from pipeline.distillation.students import Student, build_student
from pipeline.errors import ConfigError, DatasetError
from pipeline.inputs import check_inputs, find_labelled
from pipeline.models import LoadedModel, load_model, weight_digest
from pipeline.outputs import CONFIG, check_output, check_shared
from pipeline.vetting import announce, check_teacher
from pipeline.vit.families import refusal
from pipeline.vit.subset import SubsetViT


@dataclass(frozen=True)
class Plan:
    """A distillation that was found possible.

    Attributes:
        config: with absolute local paths, for workers have working folders of their own.
        identity: what decides the student, as plain data, and its digest.
        teacher: as loaded on the driver.
        student: untrained, on the driver.
        images, labelled: what is there to be read.
    """

    config: DistillationConfig
    identity: dict[str, Any]
    teacher: LoadedModel
    student: Student
    images: Source
    labelled: Source | None

    @property
    def digest(self) -> str:
        return self.identity["digest"]


def prepare(config: DistillationConfig) -> Plan:
    """Check on the driver all that can be checked without Ray; nothing is written.

    Raises:
        ConfigError, ModelError, CheckpointError, DatasetError: see `distill`.
    """
    if config.num_workers:
        check_shared(config.output)
    teacher = load_model(config.teacher)
    announce(teacher.notices)
    check_teacher(teacher)
    student = build_student(config.student, teacher, seed=config.seed)
    announce(student.notices)
    _check_tokens(config, as_reader(teacher.model), student)
    images = find_source(config.images, split=config.images_split)
    if not config.allow_incomplete:
        images.check_complete()
    check_inputs(images, teacher, labels=config.label_weight > 0)
    labelled = None if config.labelled is None else find_labelled(config.labelled, teacher, config.labelled_split)
    _check_batch_norm(config, student, images.num_rows)
    # Paths as they were given: a job that is submitted again may run in another folder.
    decided = {
        "config": config.deciding(),
        "teacher": teacher.digest,
        "student": weight_digest(student.model),
        # The same folder may hold another dataset than it did.
        "dataset": (images.manifest or {}).get("digest"),
        "num_images": images.num_rows,
    }
    identity = {"digest": digest_of(decided), **decided}
    _check_same_run(config.output, identity)
    return Plan(_located(config), identity, teacher, student, images, labelled)


def _located(config: DistillationConfig) -> DistillationConfig:
    student = config.student
    if student.model is not None:
        student = replace(student, model=student.model.located())
    return replace(config, output=storage.absolute(config.output), teacher=config.teacher.located(), student=student)


def _check_batch_norm(config: DistillationConfig, student: Student, num_images: int) -> None:
    """BatchNorm needs two values of each channel; the last feature maps of a small image may have one pixel."""
    smallest = num_images // -(-num_images // config.batch_size) // max(1, config.num_workers)
    if smallest < 2 and any(isinstance(module, _BatchNorm) for module in student.modules()) and not student.linear_head:
        raise ConfigError(
            f"the student, a {type(student.model).__name__}, has BatchNorm, but batch_size {config.batch_size} leaves "
            f"{smallest} of {num_images} images a step for each worker"
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


def _check_same_run(output: str, identity: dict[str, Any]) -> None:
    check_output(output, "distill")
    uri = storage.join(output, CONFIG)
    if not storage.exists(uri):
        return
    there = storage.read_json(uri)
    if there.get("digest") == identity["digest"]:
        return
    before, now = there.get("config") or {}, identity["config"]
    differing = [f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in now if before.get(key) != now[key]]
    what = "; ".join(differing[:3]) or "the weights of teacher or student, or the images, differ"
    raise DatasetError(f"output {output!r} holds a run of another config: {what}")
