"""Run a model on another model's images, on only the kept patches if it can."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.masking import patch_size
from pipeline.models.loading import LoadedModel
from pipeline.models.renormalize import Renormalize
from pipeline.trial import try_out
from pipeline.vit.families import refusal
from pipeline.vit.subset import SubsetViT


class ImageReader(nn.Module):
    """A model that reads the teacher's images, on only the kept tokens if it has the teacher's patch grid.

    Args:
        model: a timm model with the teacher's number of classes.
        teacher: the teacher whose images it reads.
        mean, std: mean and standard deviation that the model itself normalizes with, one number per channel, for pixels
            in [0, 1].

    Attributes:
        model: the timm model.
        vit: the model wrapped to read kept tokens; None if it reads the filled image.
        mean, std: the model's own normalization, as above.
    """

    def __init__(self, model: nn.Module, teacher: LoadedModel, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.mean, self.std = tuple(mean), tuple(std)
        self.vit = _as_reader_of_tokens(model, teacher)
        self.renormalize = Renormalize(mean=teacher.mean, std=teacher.std, to_mean=self.mean, to_std=self.std)

    def forward(self, images: Tensor, keep_indices: Tensor | None = None) -> Tensor:
        """Return logits [B, classes] of images [B, C, H, W] in the teacher's normalization.

        Args:
            images: float [B, C, H, W]; stopped patches have the mean color.
            keep_indices: int64 [B, K], the patches to read; None for all. It is ignored without `vit`, because the
                model then reads whole images.
        """
        images = self.renormalize(images)
        return self.model(images) if self.vit is None else self.vit(images, keep_indices)

    def forward_tokens(self, images: Tensor, keep_indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return logits and the tokens after the final norm [B, P + K, D]; only with `vit`."""
        assert self.vit is not None
        return self.vit.forward_tokens(self.renormalize(images), keep_indices)

    def try_out(self, teacher: LoadedModel) -> None:
        """Run the model on two images, so that an unsuitable one is refused before any work starts.

        Raises:
            ModelError: it does not take the teacher's images, or does not output the teacher's classes.
        """
        name = f"student {type(self.model).__name__}"
        try_out(self, name, image_shape=teacher.input_size, num_classes=len(teacher.class_names))


def num_patches(loaded: LoadedModel) -> int:
    """Return the number of patches of a whole image, which can be left out or masked; 0 for a model without patches."""
    model: Any = loaded.model
    if refusal(model) is None:
        return model.patch_embed.num_patches
    _, height, width = loaded.input_size
    try:
        return (height // patch_size(model, (height, width))) ** 2
    except ModelError:
        return 0


def _as_reader_of_tokens(model: nn.Module, teacher: LoadedModel) -> SubsetViT | None:
    """Wrap the model to read kept tokens; None if its family or its patch grid does not allow it."""
    try:
        vit = SubsetViT(model)
    except ModelError:
        return None
    # Images and patches are square, so equal sizes and equal numbers of patches mean equal grids.
    return vit if (vit.image_size, vit.num_patches) == (teacher.input_size[1], num_patches(teacher)) else None
