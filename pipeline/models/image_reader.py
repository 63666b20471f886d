"""Run a model on another model's images, on kept patches alone where it can."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.masking import patch_size
from pipeline.models.loading import LoadedModel
from pipeline.trial import try_out
from pipeline.vit.families import refusal
from pipeline.vit.subset import SubsetViT


class ImageReader(nn.Module):
    """A model that reads the teacher's images, on the kept tokens alone where it has the teacher's patch grid.

    Args:
        model: a timm model with the teacher's number of classes.
        teacher: whose images it is to read.
        mean, std: the model's own normalization, of pixels in [0, 1], one for each channel.

    Attributes:
        model: the timm model.
        vit: the model as a reader of kept tokens; None where it reads the filled image.
        mean, std: as given.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, teacher: LoadedModel, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.mean, self.std = tuple(mean), tuple(std)
        self.vit = _as_reader_of_tokens(model, teacher)
        # From the teacher's normalization to the model's.
        own, given = (torch.tensor(v).view(2, -1, 1, 1) for v in ((mean, std), (teacher.mean, teacher.std)))
        self.register_buffer("scale", given[1] / own[1], persistent=False)
        self.register_buffer("shift", (given[0] - own[0]) / own[1], persistent=False)
        self.renormalizes = self.mean != teacher.mean or self.std != teacher.std

    def forward(self, images: Tensor, keep_indices: Tensor | None = None) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W] in the teacher's normalization.

        Args:
            images: filled with the mean color where patches are stopped.
            keep_indices: int64 [B, K], or None for all patches; a model without `vit` reads the image regardless.
        """
        images = self._normalize(images)
        return self.model(images) if self.vit is None else self.vit(images, keep_indices)

    def forward_tokens(self, images: Tensor, keep_indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits, and the tokens after the final norm [B, P + K, D]; only with `vit`."""
        assert self.vit is not None
        return self.vit.forward_tokens(self._normalize(images), keep_indices)

    def try_out(self, teacher: LoadedModel) -> None:
        """Read two images, so that a model which cannot is refused before any work starts.

        Raises:
            ModelError: it does not take the teacher's images, or answers with other than the teacher's classes.
        """
        name = f"student {type(self.model).__name__}"
        try_out(self, name, image_shape=teacher.input_size, num_classes=len(teacher.class_names))

    def _normalize(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift if self.renormalizes else images


def num_patches(loaded: LoadedModel) -> int:
    """Patches of a whole image, left out or masked where they are stopped; 0 for a model that has none."""
    model: Any = loaded.model
    if refusal(model) is None:
        return model.patch_embed.num_patches
    _, height, width = loaded.input_size
    try:
        return (height // patch_size(model, (height, width))) ** 2
    except ModelError:
        return 0


def _as_reader_of_tokens(model: nn.Module, teacher: LoadedModel) -> SubsetViT | None:
    """The model as a reader of kept tokens; None where its family or its patch grid does not allow it."""
    try:
        vit = SubsetViT(model)
    except ModelError:
        return None
    # Images and patches are square: one size and one number of patches make one grid.
    return vit if (vit.image_size, vit.num_patches) == (teacher.input_size[1], num_patches(teacher)) else None
