"""The memory of a step, predicted from the teacher's shape, and measured.

Weights are frozen, so linear layers keep nothing for the backward pass. A block keeps the inputs of its two norms, what
attention needs, and the input of its activation function. Only tensors are counted: allocators and kernels take some
more.
"""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Mlp
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.inversion.config import InversionConfig
from pipeline.inversion.flops import TeacherShape
from pipeline.inversion.splitting import MicroBatches
from pipeline.inversion.teacher import AnyTeacher, Teacher
from pipeline.vit.last_block import is_timms

# Share of a device's memory that `largest_batch` leaves to allocators, kernels and errors of the prediction.
_MARGIN = 0.2
_FLOAT, _INDEX = 4, 8


@dataclass(frozen=True)
class StepBytes:
    """Peak memory of a step, in bytes.

    Attributes:
        weights: bytes of the teacher's weights and of its frozen copy.
        pixels: bytes of the images, of their coefficients in another basis, and of Adam's two moments.
        work: largest number of bytes that the step itself holds at a time.
    """

    weights: int
    pixels: int
    work: int

    @property
    def total(self) -> int:
        return self.weights + self.pixels + self.work


def is_predictable(teacher: Teacher) -> bool:
    """Return whether `predict` knows what the teacher's blocks keep."""
    blocks: Any = getattr(teacher.model, "blocks", ())
    return teacher.embeds_subsets and all(is_timms(block) and type(block.mlp) is Mlp for block in blocks)


def predict_run(teacher: Teacher, config: InversionConfig, *, batch: int) -> StepBytes:
    """Predict the largest step of a whole run of eager inversion; for the arguments see `predict`.

    As patches are stopped, micro-batches grow, so the largest step may lie in any phase.
    """
    prefix, phases = teacher.num_prefix_tokens, config.phases(teacher.num_patches)
    split, steps, before = MicroBatches(batch, config.micro_batch or batch), [], None
    for _, num_kept in phases:
        if before is not None:
            split.grow(batch, prefix + before, prefix + num_kept)
        steps.append(predict(teacher, config, batch=batch, micro_batch=split.size, num_kept=num_kept))
        before = num_kept
    return max(steps, key=lambda step: step.total)


def predict(
    teacher: Teacher,
    config: InversionConfig,
    *,
    batch: int,
    micro_batch: int | None = None,
    num_kept: int | None = None,
) -> StepBytes:
    """Predict a step of eager inversion.

    Args:
        teacher: a teacher on the device to run on, for which `is_predictable` returns true.
        config: settings of the inversion. Image priors and class loss are counted, the other terms are not.
        batch: number of images.
        micro_batch: number of images in one forward and backward pass; by default as configured.
        num_kept: number of patches read per image; by default all.
    """
    kept = teacher.num_patches if num_kept is None else num_kept
    together = MicroBatches(batch, micro_batch or config.micro_batch or batch).size
    image = teacher.in_chans * teacher.image_size**2 * _FLOAT
    # The changed image that a view shows; and, while all patches are alive, the weights that move its rows and columns.
    moves = config.views.moves and kept == teacher.num_patches
    view = image * (int(config.views.active) + 2 * int(moves))
    teacher_work = together * (_teacher_bytes(teacher, config, kept) + view)
    teacher_work += batch * image if together < batch else 0
    # With total variation: the step's gradient, that of the total variation, and two differences of neighbors. Without
    # it: the step's gradient, before and after it is gathered.
    priors_work = batch * image * (4 if config.tv_l2 else 2)
    # `_patch_pixels` computes where the gradient of each pixel lies, through five tensors of indices.
    gather_work = together * 5 * _INDEX * teacher.image_size**2
    return StepBytes(
        weights=weight_bytes(teacher, config.dtype),
        pixels=(3 if config.basis == "pixels" else 4) * batch * image,
        work=max(teacher_work, priors_work, gather_work),
    )


def weight_bytes(teacher: AnyTeacher, dtype: str) -> int:
    """Return the bytes of the teacher and of the copy that `frozen_copy` makes of it."""
    matrices = sum(m.weight.numel() for m in teacher.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d))
    others = sum(p.numel() for p in teacher.parameters()) - matrices
    if dtype == "bfloat16":
        return _FLOAT * (matrices + others) + 2 * matrices + _FLOAT * others
    copies = 2 if teacher.mean.device.type == "cpu" else 0
    return _FLOAT * (matrices + others + copies * matrices)


def _teacher_bytes(teacher: Teacher, config: InversionConfig, num_kept: int) -> int:
    """Return the bytes of one image: what is kept for the backward pass, and the largest temporaries beside it."""
    shape = TeacherShape.of(teacher)
    attention: Any = teacher.model.blocks[0].attn
    low = config.dtype == "bfloat16"
    item = 2 if low else _FLOAT
    fused = attention.fused_attn and not (low and teacher.mean.device.type == "cpu")
    tokens = shape.num_prefix_tokens + num_kept
    row, matrix = tokens * shape.width, attention.num_heads * tokens**2
    norms = 2 * row * _FLOAT + 4 * tokens * _FLOAT
    # Fused attention keeps queries, keys, values, the output and one sum per row; unfused attention keeps copies of the
    # first three, and the probabilities.
    mixing = 4 * row * item + tokens * attention.num_heads * _FLOAT if fused else 3 * row * item + matrix * item
    hidden = tokens * shape.hidden * item
    block = norms + mixing + hidden
    shown = num_kept * shape.patch_values * _FLOAT
    if not shape.tokens_read:
        return shape.depth * block + _largest_passing(row, hidden, 0 if fused else matrix)
    kept = (shape.depth - 1) * block
    # The last block keeps the input of its norm, keys and values; keys and values exist twice while they are made
    # contiguous.
    last = 2 * row * _FLOAT + 4 * row * item
    return kept + max(last + shown, _largest_passing(row, hidden, 0 if fused else matrix))


def _largest_passing(row: int, hidden: int, matrix: int) -> int:
    """Return the bytes of the gradients inside a block during its backward: of its MLP, or of unfused attention."""
    return row * _FLOAT + max(2 * hidden, 2 * matrix * _FLOAT)


def largest_batch(memory: int, one: StepBytes) -> int:
    """Return the number of images that fit in one forward and backward pass.

    Args:
        memory: memory of the device, in bytes.
        one: memory of a step of a batch of one image.
    """
    return max(0, int((memory * (1 - _MARGIN) - one.weights) // (one.pixels + one.work)))


class LiveBytes(TorchDispatchMode):
    """Count the bytes of live tensors while this mode is active: the given ones, and those that operations return.

    For CPUs, whose allocator keeps no statistics. Tensors in oneDNN's own layout, which hold weights, are left out.

    Args:
        alive: tensors that exist already and are counted from the start.
        without: tensors that are not counted.

    Attributes:
        peak: the largest count so far.
    """

    def __init__(self, alive: Iterable[Tensor], without: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._live = self.peak = 0
        self._storages: dict[int, Any] = {}
        self._without = {tensor.untyped_storage()._cdata for tensor in without if tensor.layout == torch.strided}
        for tensor in alive:
            self._count(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor) and result.layout == torch.strided:
                self._count(result)
        return results

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        name, size = storage._cdata, storage.nbytes()
        if name in self._without or name in self._storages:
            return
        self._storages[name] = weakref.ref(storage, lambda _: self._forget(name, size))
        self._live += size
        self.peak = max(self.peak, self._live)

    def _forget(self, name: int, size: int) -> None:
        self._live -= size
        del self._storages[name]
