"""The work of an inversion, counted: products of matrices, forward and backward to the pixels.

A multiply and an add are two operations. Weights are frozen, so the backward of a linear layer costs as much as its
forward; in attention both factors of each product have gradients, so its backward costs twice its forward. What a fused
attention kernel recomputes to save memory is not counted, nor is anything but matrix products.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ModelError
from pipeline.inversion.teacher import AnyTeacher, Teacher


@dataclass(frozen=True, kw_only=True)
class TeacherShape:
    """Dimensions of a teacher that decide how much work an image takes.

    Attributes:
        depth: number of blocks.
        width: D, the width of a token.
        hidden: width of the MLP's hidden layer.
        num_prefix_tokens: number of CLS, distillation and register tokens.
        patch_values: number of values in a patch, C·p².
        num_classes: number of outputs of all classifiers together.
        tokens_read: number of leading tokens that the last block is computed for; 0 for all tokens.
    """

    depth: int
    width: int
    hidden: int
    num_prefix_tokens: int
    patch_values: int
    num_classes: int
    tokens_read: int

    @classmethod
    def of(cls, teacher: AnyTeacher) -> "TeacherShape":
        """Return the shape of a teacher whose blocks are timm's plain ones (`embeds_subsets`).

        Raises:
            ModelError: the teacher is masked; its steps are dense, and its architecture may be any.
        """
        if not isinstance(teacher, Teacher):
            raise ModelError(f"the work of {type(teacher.model).__name__} is not counted: {teacher.notice}")
        model: Any = teacher.model
        return cls(
            depth=len(model.blocks),
            width=teacher.embed_dim,
            hidden=model.blocks[0].mlp.fc1.out_features,
            num_prefix_tokens=teacher.num_prefix_tokens,
            patch_values=teacher.in_chans * teacher.patch_size**2,
            num_classes=teacher.num_classes * (2 if hasattr(model, "head_dist") else 1),
            tokens_read=teacher.tokens_read,
        )


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one image, or of a run."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        return self.forward + self.backward

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: int) -> "Flops":
        return Flops(self.forward * times, self.backward * times)


def step_flops(shape: TeacherShape, num_kept: int) -> Flops:
    """Count one step of one image of which `num_kept` patches are read."""
    tokens, width, hidden = shape.num_prefix_tokens + num_kept, shape.width, shape.hidden
    read = shape.tokens_read or tokens
    whole = tokens * width * (4 * width + 2 * hidden)
    # The last block computes keys and values for all tokens; queries, projection and MLP only for those that are read.
    last = tokens * width * 2 * width + read * width * (2 * width + 2 * hidden)
    linear = 2 * ((shape.depth - 1) * whole + last + num_kept * shape.patch_values * width)
    linear += 2 * width * shape.num_classes
    attention = 2 * 2 * tokens * width * ((shape.depth - 1) * tokens + read)
    return Flops(linear + attention, linear + 2 * attention)


def run_flops(shape: TeacherShape, phases: Iterable[tuple[int, int]]) -> Flops:
    """Count a whole run of one image.

    Args:
        shape: dimensions of the teacher.
        phases: pairs (number of steps, patches alive), as `schedule.alive_phases` returns them.
    """
    total = Flops(0, 0)
    for num_steps, num_kept in phases:
        total = total + step_flops(shape, num_kept) * num_steps
    return total
