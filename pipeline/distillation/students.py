"""Students: any timm model, depth-pruned copies of the teacher, and frozen backbones with a new linear head."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import timm
import timm.models
import torch
from torch import Tensor, nn

from pipeline.distillation.config import StudentConfig
from pipeline.errors import ConfigError, ModelError
from pipeline.models import LOCAL_DIR, LoadedModel, ModelConfig, load_model
from pipeline.vit import SubsetViT

# What a model raises for images of a shape that it does not take.
_SHAPE_ERRORS = (RuntimeError, ValueError, AssertionError, IndexError, TypeError)


class Student(nn.Module):
    """A model that reads the teacher's images, on the kept tokens alone where it has the teacher's patch grid.

    Args:
        model: a timm model with the teacher's number of classes.
        teacher: whose images it is to read.
        mean, std: the model's own normalisation, of pixels in [0, 1], one for each channel.
        linear_head: freeze everything but the classifier.

    Attributes:
        model: the timm model.
        vit: the model as a reader of kept tokens; None where it reads the filled image.
        mean, std: as given.

    Raises:
        ModelError: another number of classes or channels than the teacher's, or an image size that is not its own.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        model: nn.Module,
        teacher: LoadedModel,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        linear_head: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.mean, self.std = tuple(mean), tuple(std)
        self.linear_head = linear_head
        self.vit = _as_reader_of_tokens(model, teacher)
        # From the teacher's normalisation to the student's.
        own, given = (torch.tensor(v).view(2, -1, 1, 1) for v in ((mean, std), (teacher.mean, teacher.std)))
        self.register_buffer("scale", given[1] / own[1], persistent=False)
        self.register_buffer("shift", (given[0] - own[0]) / own[1], persistent=False)
        self.renormalises = self.mean != teacher.mean or self.std != teacher.std
        if linear_head:
            self.requires_grad_(False)
            for parameter in _head_parameters(model):
                parameter.requires_grad_(True)
        self.train(False)

    def forward(self, images: Tensor, keep_indices: Tensor | None = None) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W] in the teacher's normalisation.

        Args:
            images: filled with the mean colour where patches are stopped.
            keep_indices: int64 [B, K], or None for all patches; a student without `vit` reads the image regardless.
        """
        images = self._normalise(images)
        return self.model(images) if self.vit is None else self.vit(images, keep_indices)

    def forward_tokens(self, images: Tensor, keep_indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits, and the tokens after the final norm [B, P + K, D]; only with `vit`."""
        assert self.vit is not None
        return self.vit.forward_tokens(self._normalise(images), keep_indices)

    def train(self, mode: bool = True) -> "Student":
        """Training mode, save for a frozen backbone, which stays in evaluation mode as published."""
        return super().train(mode and not self.linear_head)

    def trained_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _normalise(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift if self.renormalises else images


@dataclass(frozen=True)
class _Made:
    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]


def build_student(config: StudentConfig, teacher: LoadedModel, *, seed: int) -> Student:
    """Make a student, on the CPU, in evaluation mode; new weights derive from the seed alone.

    Raises:
        ConfigError: a block that the teacher does not have, or another class count than the teacher's.
        ModelError, CheckpointError: as `load_model`; or the model does not take the teacher's images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.model is None:
            made = _Made(prune_depth(teacher.model, config.depth_pruned or []), teacher.mean, teacher.std)
        else:
            made = _make(config.model, teacher, linear_head=config.linear_head)
        if config.linear_head:
            made.model.reset_classifier(len(teacher.class_names))  # type: ignore[operator]
    # Where real images are resized and cropped, the student that is saved must do as the teacher did.
    inherited = {k: teacher.data_config[k] for k in ("input_size", "interpolation", "crop_pct", "crop_mode")}
    made.model.pretrained_cfg = {**made.model.pretrained_cfg, **inherited}  # type: ignore[dict-item]
    student = Student(made.model, teacher, mean=made.mean, std=made.std, linear_head=config.linear_head)
    _try_out(student, teacher)
    return student


def prune_depth(model: nn.Module, blocks: Sequence[int]) -> nn.Module:
    """A copy of a ViT with some of its blocks, in their order.

    It is made by timm with `depth=len(blocks)`, so that it is saved and loaded as any other.

    Raises:
        ConfigError: there is no such block.
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
        raise ModelError(f"{family} cannot be made with {len(blocks)} of its blocks: {_one_line(error)}") from error
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
    # timm adapts the first layer of its own pretrained weights, not of a checkpoint of ours.
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
    return _Made(loaded.model, loaded.mean, loaded.std)


def _as_reader_of_tokens(model: nn.Module, teacher: LoadedModel) -> SubsetViT | None:
    """The model as a reader of kept tokens; None where its family or its patch grid does not allow it."""
    try:
        vit = SubsetViT(model)
    except ModelError:
        return None
    teachers = getattr(getattr(teacher.model, "patch_embed", None), "num_patches", None)
    # Images and patches are square: one size and one number of patches make one grid.
    return vit if (vit.image_size, vit.num_patches) == (teacher.input_size[1], teachers) else None


def _head_parameters(model: nn.Module) -> list[nn.Parameter]:
    heads = model.get_classifier()  # type: ignore[operator]
    modules = heads if isinstance(heads, tuple) else (heads,)
    return [parameter for module in modules for parameter in module.parameters()]


@torch.inference_mode()
def _try_out(student: Student, teacher: LoadedModel) -> None:
    """Read one grey image, so that a model which cannot is told before any worker starts."""
    name, size = type(student.model).__name__, teacher.input_size
    try:
        logits = student(torch.zeros(1, *size))
    except _SHAPE_ERRORS as error:
        raise ModelError(f"student {name} cannot read the teacher's images {list(size)}: {_one_line(error)}") from error
    if logits.shape[1:] != (len(teacher.class_names),):
        raise ModelError(
            f"student {name} answers with {list(logits.shape[1:])} values, the teacher with {len(teacher.class_names)}"
        )


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
