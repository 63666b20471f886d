"""Students: any timm model, depth-pruned copies of the teacher, and frozen backbones with a new linear head."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import timm
import timm.models
import torch
from torch import Tensor, nn

from pipeline.artifacts.facts import check_class_order
from pipeline.distillation.config import StudentConfig
from pipeline.errors import ConfigError, ModelError, one_line
from pipeline.models import LOCAL_DIR, LoadedModel, ModelConfig, load_model
from pipeline.models.epsilon import copy_notice
from pipeline.models.image_reader import ImageReader
from pipeline.vit.families import refusal


class Student(ImageReader):
    """A model to train on the teacher's images.

    Args:
        model, teacher, mean, std: arguments of `ImageReader`: the student, and what it is wrapped for.
        linear_head: whether to freeze everything except the classifier.
        notices: messages for the user about how the model was loaded.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: LoadedModel,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        linear_head: bool = False,
        notices: tuple[str, ...] = (),
    ) -> None:
        super().__init__(model, teacher, mean=mean, std=std)
        self.linear_head = linear_head
        self.notices = notices
        if linear_head:
            self.requires_grad_(False)
            for parameter in _head_parameters(model):
                parameter.requires_grad_(True)
        self.train(False)

    def train(self, mode: bool = True) -> "Student":
        """Set training mode, except for a frozen backbone, which stays in evaluation mode as published."""
        return super().train(mode and not self.linear_head)

    def trained_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


@dataclass(frozen=True)
class _Made:
    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notices: tuple[str, ...] = ()


def build_student(config: StudentConfig, teacher: LoadedModel, *, seed: int) -> Student:
    """Make a student, on the CPU, in evaluation mode; new weights depend only on the seed.

    Raises:
        ConfigError: the teacher does not have one of the blocks, the class count is not the teacher's, an argument of
            the model would have no effect, or a backbone without weights was to be frozen.
        ModelError, CheckpointError: as `load_model`; or the model does not take the teacher's images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.model is None:
            pruned = prune_depth(teacher.model, config.depth_pruned or [])
            notices = copy_notice(f"depth-pruned copy of {teacher.name!r}", pruned, teacher.model)
            made = _Made(pruned, teacher.mean, teacher.std, notices)
        else:
            made = _make(config.model, teacher, linear_head=config.linear_head)
        if config.linear_head:
            made.model.reset_classifier(len(teacher.class_names))  # type: ignore[operator]
    # The saved student must resize and crop real images as the teacher does.
    inherited = {k: teacher.data_config[k] for k in ("input_size", "interpolation", "crop_pct", "crop_mode")}
    made.model.pretrained_cfg = {**made.model.pretrained_cfg, **inherited}  # type: ignore[dict-item]
    student = Student(
        made.model,
        teacher,
        mean=made.mean,
        std=made.std,
        linear_head=config.linear_head,
        notices=made.notices,
    )
    if student.vit is not None and config.model is not None and config.model.model_args.get("patch_drop_rate"):
        raise ConfigError(
            "student.model.model_args.patch_drop_rate has no effect: this student reads the patches that each image "
            "keeps; leave it out"
        )
    student.try_out(teacher)
    return student


def student_or_teacher_reads_kept(teacher: LoadedModel, student: Student) -> bool:
    """Return whether teacher or student reads only the kept patches, so that their grid must be the teacher's."""
    return refusal(teacher.model) is None or student.vit is not None


def prune_depth(model: nn.Module, blocks: Sequence[int]) -> nn.Module:
    """Return a copy of a ViT with only some of its blocks, in their order.

    timm makes it with `depth=len(blocks)`, so that it can be saved and loaded like any other model.

    Raises:
        ConfigError: the ViT does not have one of the blocks.
        ModelError: the family has no blocks of equal shape to choose from.
    """
    family = type(model).__name__
    count = len(getattr(model, "blocks", ()))
    if not count:
        raise ModelError(f"{family} has no blocks to choose from")
    if wrong := [block for block in blocks if not 0 <= block < count]:
        raise ConfigError(f"student.depth_pruned: no block {wrong[0]}, the teacher has {count} (0 to {count - 1})")
    arguments = {**timm.models.get_model_args(model), "depth": len(blocks)}
    try:
        pruned = timm.create_model(model.pretrained_cfg["architecture"], **arguments)  # type: ignore[index]
        pruned.load_state_dict(dict(_renumber_blocks(model.state_dict(), blocks)))
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{family} cannot be made with {len(blocks)} of its blocks: {one_line(error)}") from error
    pruned.pretrained_cfg = dict(model.pretrained_cfg)  # type: ignore[arg-type]
    return pruned.eval()


def _renumber_blocks(weights: dict[str, Tensor], blocks: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    for name, value in weights.items():
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        if match is None:
            yield name, value
        elif int(match[1]) in blocks:
            yield f"blocks.{blocks.index(int(match[1]))}.{match[2]}", value


def _make(config: ModelConfig, teacher: LoadedModel, *, linear_head: bool) -> _Made:
    num_classes, channels = len(teacher.class_names), teacher.input_size[0]
    if not linear_head and config.num_classes not in (None, num_classes):
        raise ConfigError(f"student.model.num_classes is {config.num_classes}, the teacher has {num_classes} classes")
    if config.in_chans not in (None, channels):
        raise ConfigError(f"student.model.in_chans is {config.in_chans}, the teacher's images have {channels} channels")
    has_weights = config.pretrained or config.checkpoint is not None or config.name.startswith(LOCAL_DIR)
    if linear_head and not has_weights:
        raise ConfigError(
            f"student.linear_head trains a head alone, and student.model {config.name!r} has no weights to freeze: set "
            "student.model.pretrained or checkpoint, or linear_head to false"
        )
    # timm adapts the first layer of its own pretrained weights, but not that of a given checkpoint.
    adapts = config.checkpoint is None and not config.name.startswith(LOCAL_DIR)
    config = replace(
        config,
        num_classes=config.num_classes if linear_head else num_classes,
        in_chans=channels if config.in_chans is None and adapts else config.in_chans,
        mean=list(teacher.mean) if config.mean is None and not has_weights else config.mean,
        std=list(teacher.std) if config.std is None and not has_weights else config.std,
    )
    loaded = load_model(config, trained=False)
    if loaded.input_size[0] != channels:
        raise ModelError(
            f"student {config.name!r} reads {loaded.input_size[0]} channels, the teacher's images have {channels}"
        )
    if not linear_head:
        check_class_order(loaded, teacher)
    return _Made(loaded.model, loaded.mean, loaded.std, loaded.notices)


def _head_parameters(model: nn.Module) -> list[nn.Parameter]:
    heads = model.get_classifier()  # type: ignore[operator]
    modules = heads if isinstance(heads, tuple) else (heads,)
    return [parameter for module in modules for parameter in module.parameters()]
