"""The frozen teacher: logits and patch scores on kept patches, and its normalization."""

from collections.abc import Sequence, Sized
from contextlib import AbstractContextManager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ConfigError, ModelError
from pipeline.inversion.arguments import check_model, normalization
from pipeline.inversion.config import InversionConfig
from pipeline.inversion.patches import cut_patches, jitter_images, move_patches
from pipeline.masking import MaskedModel, fill_stopped
from pipeline.torch_modes import usual_modes
from pipeline.vit.families import check_family
from pipeline.vit.logits import check_logits
from pipeline.vit.ranking import Ranking, resolve_ranking, shows_attention, target_gradient
from pipeline.vit.subset import SubsetViT


class _Frozen(nn.Module):
    """Base of both teachers: frozen weights, and the normalization of their images.

    Pixels are float32 in normalized space, [B, C, H, W]: 0 is the mean color, and a stored image can hold values from
    `low` to `high`.
    """

    mean: Tensor
    std: Tensor
    in_chans: int
    grid_size: int
    # What `frozen_copy` did to the weights: nothing, rounded them to bfloat16, or packed them for oneDNN.
    layout: Literal["plain", "rounded", "packed"] = "plain"

    def _freeze(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @property
    def low(self) -> Tensor:
        """Black, in normalized space [C, 1, 1]."""
        return -self.mean / self.std

    @property
    def high(self) -> Tensor:
        """White, in normalized space [C, 1, 1]."""
        return (1 - self.mean) / self.std

    def to_uint8(self, images: Tensor) -> Tensor:
        """Convert normalized images [B, C, H, W] to the stored 8-bit pixels [B, H, W, C], rounding to nearest."""
        pixels = (images * self.std + self.mean) * 255
        return pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def from_uint8(self, pixels: Tensor) -> Tensor:
        """Convert 8-bit pixels [B, H, W, C] to normalized float32 [B, C, H, W].

        Raises:
            ConfigError: the pixels are not uint8 in that order, so that their range or channels are not known.
        """
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[3] != self.in_chans:
            kind, shape = str(pixels.dtype).removeprefix("torch."), list(pixels.shape)
            raise ConfigError(f"pixels must be uint8 [B, H, W, {self.in_chans}], not {kind} {shape}")
        return (pixels.permute(0, 3, 1, 2).to(torch.float32) / 255 - self.mean) / self.std

    def fill_stopped(self, images: Tensor, keep_indices: Tensor) -> Tensor:
        """Return the images with every patch outside `keep_indices` [B, K] at the mean color."""
        return fill_stopped(images, keep_indices, self.grid_size)


class Teacher(_Frozen, SubsetViT):
    """A frozen ViT with the normalization of its images. Stopped patches cost no computation.

    Args:
        model: a timm ViT. Its weights are frozen, and it is put in evaluation mode.
        mean: mean of each channel, for pixels in [0, 1].
        std: standard deviation of each channel, for pixels in [0, 1].

    Attributes:
        notice: message for the user at the start of a run; none for this class.

    Raises:
        ModelError: the family cannot be run on a token subset, the normalization is for other channels or not for
            pixels in [0, 1], the model is wrapped (`torch.compile`, DataParallel), its weights are not float32, or its
            own forward returns something other than its blocks and head do.
    """

    notice: str | None = None

    @usual_modes()
    def __init__(self, model: nn.Module, *, mean: Sequence[float], std: Sequence[float]) -> None:
        check_model(model)
        super().__init__(model)
        self._freeze(*normalization(mean, std, self.in_chans))
        check_logits(self)

    def look(self, images: Tensor, keep_indices: Tensor, jitter: Tensor) -> Tensor:
        """Return the logits [B, classes] of the patches alive in the jittered images.

        Args:
            images: normalized images [B, C, H, W], before the jitter.
            keep_indices: int64 [B, K], the patches alive.
            jitter: int64 [B, 3], rows of (dy, dx, flip); shifts in pixels.
        """
        view, positions = self._view(images, keep_indices, jitter)
        return self.forward_patches(view, positions) if self.embeds_subsets else self(view, positions)

    def look_and_rank(
        self, images: Tensor, keep_indices: Tensor, jitter: Tensor, ranking: Ranking, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return `look`'s logits and the scores [B, K] of the patches in `keep_indices`; see `forward_scores`."""
        view, positions = self._view(images, keep_indices, jitter)
        rank = self.forward_patches_scores if self.embeds_subsets else self.forward_scores
        return rank(view, positions, ranking=ranking, targets=targets)

    def _view(self, images: Tensor, keep_indices: Tensor, jitter: Tensor) -> tuple[Tensor, Tensor]:
        """Return the jittered patches, or whole images for a model that gathers tokens, and the patches' positions."""
        side = self.patch_size
        positions = move_patches(keep_indices, jitter, grid_size=self.grid_size, patch_size=side)
        if self.embeds_subsets:
            return cut_patches(images, positions, jitter, patch_size=side), positions
        return jitter_images(images, jitter), positions

    def resolve_ranking(self, config: InversionConfig) -> Ranking:
        """Return the ranking of patches that a config asks for.

        Raises:
            ModelError: the ranking reads an attention that cannot be read in this family.
            ConfigError: the config sets `mask_only`.
        """
        if config.mask_only:
            raise ConfigError("mask_only is for a MaskedTeacher, this Teacher leaves stopped patches out")
        return resolve_ranking(self.model, config.ranking)

    def check_blocks(self, term: str) -> None:
        """Check that a loss term can read the attention of every block.

        Raises:
            ModelError: the attention of this family cannot be read.
        """
        closed = [block for block in self.model.blocks if not shows_attention(block)]
        if closed:
            raise ModelError(
                f"{term} reads the attention of every block of {type(self.model).__name__}, and the attention in its "
                f"{type(closed[0]).__name__} cannot be read"
            )


class MaskedTeacher(_Frozen, MaskedModel):
    """A frozen classifier of any family, which reads whole images with stopped patches at the mean color.

    Forward and backward cost as much as in a dense inversion; pixels of stopped patches get no gradient of the class
    loss.

    Args:
        model: any timm classifier. Its weights are frozen, and it is put in evaluation mode.
        image_size: height and width in pixels.
        mean: mean of each channel, for pixels in [0, 1].
        std: standard deviation of each channel, for pixels in [0, 1].

    Raises:
        ModelError: the model has no grid of patches, or the model or its normalization is refused, as by `Teacher`.
    """

    embeds_subsets = False

    @usual_modes()
    def __init__(
        self, model: nn.Module, *, image_size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        check_model(model)
        mean, std = normalization(mean, std, len(mean) if isinstance(mean, Sized) else 1)
        super().__init__(model, image_size=image_size, in_chans=len(mean))
        self._freeze(mean, std)

    @property
    def notice(self) -> str:
        """Message for the user at the start of a run."""
        return f"{type(self.model).__name__} reads whole images only: stopped patches are masked, which saves no time"

    def look(self, images: Tensor, keep_indices: Tensor, jitter: Tensor) -> Tensor:
        """Return logits [B, classes] as `Teacher.look` does.

        The mask is applied before the jitter, so it moves exactly with the pixels.
        """
        return self(jitter_images(self.fill_stopped(images, keep_indices), jitter))

    def look_and_rank(
        self, images: Tensor, keep_indices: Tensor, jitter: Tensor, ranking: Ranking, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return `look`'s logits and the scores [B, K] of the patches in `keep_indices`.

        A patch's score is |gradient of the target's logit × pixel|, summed over its pixels: stopping sets a pixel to 0,
        and the product is the first-order effect of that. It takes one more forward and backward pass.
        """
        assert ranking == "gradient_activation", "no other ranking was resolved"
        leaf = self.fill_stopped(images.detach(), keep_indices).requires_grad_()
        with torch.enable_grad():
            gradient = target_gradient(self(leaf), targets, leaf)
        effect = (gradient * leaf.detach()).abs().sum(dim=1, keepdim=True)
        scores = F.avg_pool2d(effect, self.patch_size).flatten(1)
        return self.look(images, keep_indices, jitter), scores.gather(1, keep_indices)

    def attention_outputs(self) -> AbstractContextManager[list[Tensor]]:
        """Never called: `check_blocks` refuses every loss that reads attention."""
        raise NotImplementedError

    def resolve_ranking(self, config: InversionConfig) -> Ranking:
        """Return the ranking by gradient, because attention need not lie on the grid; see `Teacher.resolve_ranking`.

        Raises:
            ModelError: the config asks for another ranking.
            ConfigError: the config does not set `mask_only`.
        """
        family = type(self.model).__name__
        if not config.mask_only:
            raise ConfigError(f"{family} is masked, and mask_only is not set")
        if config.ranking not in ("auto", "gradient_activation"):
            raise ModelError(f"{family} cannot rank its patches by {config.ranking}: it is masked, not read by tokens")
        return "gradient_activation"

    def check_blocks(self, term: str) -> None:
        """Refuse loss terms that read attention, as `Teacher.check_blocks` does.

        Raises:
            ModelError: always; the attention of a masked model is not read.
        """
        raise ModelError(f"{term} reads the attention of every block, and {type(self.model).__name__} is masked")


AnyTeacher = Teacher | MaskedTeacher


def make_teacher(
    model: nn.Module,
    config: InversionConfig,
    *,
    image_size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> AnyTeacher:
    """Make the teacher that a config asks for.

    Args:
        model: a timm classifier. With `mask_only` it may be of any family.
        config: settings of the inversion.
        image_size: height and width in pixels.
        mean: mean of each channel, for pixels in [0, 1].
        std: standard deviation of each channel, for pixels in [0, 1].

    Raises:
        ModelError: the family cannot be run on a token subset and `mask_only` is not set; or it cannot be masked; or a
            loss term reads attention that this family does not give.
    """
    check_model(model)
    if config.mask_only:
        teacher = MaskedTeacher(model, image_size=image_size, mean=mean, std=std)
    else:
        _check_subsets(model)
        teacher = Teacher(model, mean=mean, std=std)
    if config.patch_similarity:
        teacher.check_blocks("patch_similarity")
    return teacher


def _check_subsets(model: nn.Module) -> None:
    """Refuse a family that cannot be run on a token subset, and say what to do instead."""
    try:
        check_family(model)
    except ModelError as error:
        instead = "inversion.mask_only inverts it on whole images, without saving any time"
        raise ModelError(f"{error}; {instead}") from error
