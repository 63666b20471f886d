"""What networks see of the images at a step, and what they say to it: the terms of the loss that depend on a view."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.inversion import losses
from pipeline.inversion.config import InversionConfig
from pipeline.inversion.patches import jitter_images, move_patches
from pipeline.inversion.teacher import AnyTeacher
from pipeline.vit.ranking import Ranking


@dataclass(frozen=True)
class View:
    """Some of a run's images as one step shows them.

    Attributes:
        images: float32 [b, C, H, W], as they are.
        keep_indices: the patches alive, int64 [b, K].
        jitter: how they are shown, int64 [b, 3].
        targets: their classes, int64 [b].
    """

    images: Tensor
    keep_indices: Tensor
    jitter: Tensor
    targets: Tensor


class Viewer:
    """The networks that look at the images: the teacher, and those of some losses.

    Args:
        teacher: made ready for the run.
        config: which terms there are.
        feature_prior, disagreement: where they have a weight.

    Attributes:
        look: images, keep_indices, jitter → the teacher's logits [b, classes]; a compiled one may take its place.
    """

    def __init__(
        self,
        teacher: AnyTeacher,
        config: InversionConfig,
        *,
        feature_prior: losses.FeaturePrior | None,
        disagreement: losses.Disagreement | None,
    ) -> None:
        self.teacher = teacher
        self.config = config
        self.feature_prior = feature_prior
        self.disagreement = disagreement
        self.look: Callable[..., Tensor] = teacher.look
        self._ranking: Ranking = teacher.resolve_ranking(config)

    def terms(self, view: View, scores: list[Tensor] | None = None) -> dict[str, Tensor]:
        """Each term's value of each image [b]. The class loss is the first.

        Args:
            view: to look at.
            scores: where the patches are to be ranked, it gets their scores [b, K], in the order of `keep_indices`.
        """
        config = self.config
        outputs: list[Tensor] = []
        precision = torch.autocast(view.images.device.type, torch.bfloat16, enabled=config.dtype == "bfloat16")
        with precision:
            if config.patch_similarity:
                logits = self._watched_logits(view, scores, outputs)
            else:
                logits = self._logits(view, scores)
        terms = {"class_loss": losses.class_loss(logits.float(), view.targets)}
        if config.patch_similarity:
            terms["patch_similarity"] = -losses.patch_similarity_entropy(outputs)
        if self.feature_prior is not None:
            terms["feature_prior"] = self.feature_prior(self._filled(view)).expand(len(logits))
        if self.disagreement is not None:
            with precision:
                terms["adversarial"] = -self._disagree(self.disagreement, logits.float(), view)
        return terms

    def _logits(self, view: View, scores: list[Tensor] | None) -> Tensor:
        """The teacher's logits [b, classes] of the patches alive, jittered."""
        shown = view.images, view.keep_indices, view.jitter
        if scores is None:
            return self.look(*shown)
        # So few steps rank that no graph is compiled for them.
        logits, scored = self.teacher.look_and_rank(*shown, self._ranking, view.targets)
        scores.append(scored.float())
        return logits

    def _watched_logits(self, view: View, scores: list[Tensor] | None, outputs: list[Tensor]) -> Tensor:
        """The logits, and in `outputs` what every block's attention gave."""
        with self.teacher.attention_outputs() as seen:
            logits = self.look(view.images, view.keep_indices, view.jitter)
        outputs.extend(seen)
        if scores is not None:
            # Ranking runs attention, or everything, once more: a pass of its own, that is not watched.
            with torch.no_grad():
                self._logits(view, scores)
        return logits

    def _disagree(self, disagreement: losses.Disagreement, logits: Tensor, view: View) -> Tensor:
        """The student's disagreement [b] with the teacher's logits, about what the teacher was shown."""
        shown = jitter_images(view.images, view.jitter) if disagreement.reads_kept else self._filled(view)
        grid, side = self.teacher.grid_size, self.teacher.patch_size
        positions = move_patches(view.keep_indices, view.jitter, grid_size=grid, patch_size=side)
        return disagreement(logits, shown, positions)

    def _filled(self, view: View) -> Tensor:
        """What the images will be, jittered: the patches alive, over mean color."""
        return jitter_images(self.teacher.fill_stopped(view.images, view.keep_indices), view.jitter)
