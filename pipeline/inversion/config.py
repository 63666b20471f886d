"""Settings of an inversion."""

from dataclasses import dataclass, field, fields
from typing import Literal

from pipeline.checks import check_finite, check_range, check_ranges, check_types
from pipeline.errors import ConfigError
from pipeline.inversion.schedule import (
    PatchChange,
    alive_phases,
    check_stops,
    ratio_changes,
    rebirth_changes,
    spread_stops,
    stop_changes,
)
from pipeline.vit.ranking import Ranking

_STOP_STEPS, _STOP_FRACTIONS = [50, 100, 200, 300], [0.3, 0.3, 0.3, 0.3]


def _weight(default: float) -> float:
    """Mark a setting as the weight of a loss term."""
    return field(default=default, metadata={"weight": True})


@dataclass(frozen=True, kw_only=True)
class StopFormula:
    """A stopping schedule given by its end: equally spaced stops of equal fractions.

    Args:
        keep_ratio: share of the patches that remain after the last stop.
        by_step: the iteration of the last stop.
        num_stops: number of stops.
    """

    keep_ratio: float
    by_step: int
    num_stops: int = 4

    def __post_init__(self) -> None:
        check_types(self, "stop_formula.")
        spread_stops(self.keep_ratio, self.by_step, self.num_stops)


@dataclass(frozen=True, kw_only=True)
class AdaptiveEnd:
    """End an image, and drop it from its batch, when the teacher has been confident for some steps after the last stop.

    Args:
        confidence: probability of the target class that the teacher must reach.
        hold_steps: consecutive steps that must reach it; in the last of them, the teacher sees the image without
            jitter.
    """

    confidence: float = 0.9
    hold_steps: int = 25

    def __post_init__(self) -> None:
        check_types(self, "adaptive_end.")
        check_range("adaptive_end.confidence", self.confidence, 0, 1, open_low=True, open_high=True)
        # At least two: one step with jitter and one without.
        check_range("adaptive_end.hold_steps", self.hold_steps, 2)


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """Random changes of the images before the networks see them, redrawn for each image and step; 0 turns one off.

    The strength of each change is drawn uniformly, from none to the value set here. All but the noise need whole
    images: they end with the first patch that is stopped. The steps that rank or stop patches, or end images, show
    images as they are.

    Args:
        degrees: largest rotation either way.
        scale: largest change of size; 0.1 scales by 0.9 to 1.1.
        blur: largest standard deviation of a Gaussian blur, in pixels.
        noise: largest standard deviation of Gaussian noise, in normalized pixels.
    """

    degrees: float = 0.0
    scale: float = 0.0
    blur: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        check_types(self, "views.")
        check_finite(self, "views.")
        check_range("views.degrees", self.degrees, 0, 45)
        check_range("views.scale", self.scale, 0, 1, open_high=True)
        check_range("views.blur", self.blur, 0)
        check_range("views.noise", self.noise, 0)

    @property
    def moves(self) -> bool:
        """Whether images are rotated, scaled or blurred."""
        return bool(self.degrees or self.scale or self.blur)

    @property
    def active(self) -> bool:
        """Whether anything is changed."""
        return self.moves or bool(self.noise)


@dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """Optimization of images (SMI; Hu et al., ICML 2024). The defaults are the published sparse schedule.

    Args:
        iterations: optimization steps. 0, without stops, writes the starting images, as a baseline.
        start: what an image starts as, `noise` or `dead_leaves`: random ellipses and boxes that cover each other.
        start_std: factor of the starting image in normalized pixels; the standard deviation of noise.
        basis: what the optimizer changes, `pixels` or `cosine` coefficients, which makes images more like photographs.
            Noise is then drawn in that basis, too.
        falloff: exponent of `cosine`: how fast amplitudes fall with the frequency.
        lr: learning rate of Adam, in normalized pixels; of `cosine`, in units of the coefficients.
        betas: betas of Adam.
        jitter: largest shift along each axis, as a share of the image size.
        flip: probability of a mirrored view.
        views: further changes of what the networks see.
        stop_steps: iterations at which patches are stopped; an empty list for dense inversion.
        stop_fractions: share of the remaining patches that each stop removes.
        stop_formula: computes the two lists above; leave them out then.
        rebirth: number v of sparse images per run (Patch Rebirth; Heo & Choi, arXiv 2509.23235). At v equally spaced
            steps, the N/v best of the N patches are detached as an image of their own. It replaces the stops. The
            number of iterations is rounded down to a multiple of v.
        adaptive_end: end each image once the teacher is confident; by default all images run all iterations.
        scope: `image` computes each loss and draws jitter per image, so that an image does not depend on its batch.
            `published` averages the class loss, takes the total variation over the whole batch, and draws one jitter
            per batch.
        class_weight: weight of the class loss.
        tv_l2: weight of the L2 total variation. A published λ at batch size B equals λ·√B with scope `image`.
        tv_l1: weight of the L1 total variation.
        l2: weight of the L2 norm of the pixels.
        patch_similarity: weight of the patch similarity entropy, which is maximized (PSAQ-ViT).
        feature_prior: weight of the distance to a CNN's BatchNorm statistics, on the kept patches over mean color.
        adversarial: weight of a student's disagreement with the teacher, which is maximized (Adaptive DeepInversion).
        micro_batch: images per forward and backward pass while all patches are alive; the whole batch by default. As
            patches are stopped, more images go together. It is halved when memory runs out.
        dtype: type of the forward and backward pass; pixels and optimizer stay in float32.
        ranking: how patches are ranked for the stops; `auto` chooses by the model family, see docs/families.md.
        mask_only: read whole images and mask stopped patches, for teachers that cannot run on a subset of patches. It
            saves no time.
        compile: compile the parts of a step with `torch.compile`, once per number of patches; on CUDA into CUDA graphs,
            without which small sparse steps wait for launches. Compiling takes up to a minute for each number of
            patches, and pixels are rounded differently.
    """

    iterations: int = 4000
    start: Literal["noise", "dead_leaves"] = "noise"
    start_std: float = 1.0
    basis: Literal["pixels", "cosine"] = "pixels"
    falloff: float = 1.2
    lr: float = 0.25
    betas: tuple[float, float] = (0.5, 0.99)
    jitter: float = 0.125
    flip: float = 0.5
    views: ViewConfig = field(default_factory=ViewConfig)
    stop_steps: list[int] = field(default_factory=lambda: list(_STOP_STEPS))
    stop_fractions: list[float] = field(default_factory=lambda: list(_STOP_FRACTIONS))
    stop_formula: StopFormula | None = None
    rebirth: int | None = None
    adaptive_end: AdaptiveEnd | None = None
    scope: Literal["image", "published"] = "image"
    class_weight: float = _weight(1.0)
    # As published, 1e-4 over a batch of 32; per image that is 1e-4 * sqrt(32).
    tv_l2: float = _weight(5.66e-4)
    tv_l1: float = _weight(0.0)
    l2: float = _weight(0.0)
    patch_similarity: float = _weight(0.0)
    feature_prior: float = _weight(0.0)
    adversarial: float = _weight(0.0)
    micro_batch: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    ranking: Literal["auto", Ranking] = "auto"
    mask_only: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_finite(self)
        check_range("lr", self.lr, 0, open_low=True)
        check_ranges(self, ("start_std", "falloff"), 0)
        for name, value in (*(("betas", beta) for beta in self.betas), ("jitter", self.jitter)):
            check_range(name, value, 0, 1, open_high=True)
        check_range("flip", self.flip, 0, 1)
        check_range("micro_batch", self.micro_batch, 1)
        check_ranges(self, ("iterations", *self.weights), 0)
        if self.compile and self.mask_only:
            raise ConfigError("compile needs a teacher that runs on a subset of patches; mask_only is for the others")
        if self.compile and self.patch_similarity:
            raise ConfigError("compile and patch_similarity exclude each other: hooks on the blocks do not compile")
        if not self.stop_steps and self.stop_fractions == _STOP_FRACTIONS:
            self._set_stops(([], []))
        if self.stop_formula is not None:
            formula = self.stop_formula
            if formula.by_step >= self.iterations:
                raise ConfigError(
                    f"stop_formula.by_step must lie before the end, {self.iterations} iterations, not {formula.by_step}"
                )
            self._fill_in_stops("stop_formula", spread_stops(formula.keep_ratio, formula.by_step, formula.num_stops))
        if self.rebirth is not None:
            self._check_rebirth(self.rebirth)
            self._fill_in_stops("rebirth", ([], []))
        if self.adaptive_end is not None and self.scope == "published":
            raise ConfigError(
                "adaptive_end drops images from a batch, and with scope published the images depend on each other"
            )
        check_stops(self.stop_steps, self.stop_fractions, self.iterations)

    def _check_rebirth(self, factor: int) -> None:
        check_range("rebirth", factor, 2)
        if factor > self.iterations:
            raise ConfigError(f"rebirth {factor} needs at least {factor} iterations, not {self.iterations}")
        if self.stop_formula is not None:
            raise ConfigError("rebirth detaches patches instead of stopping them: leave stop_formula out")

    def _fill_in_stops(self, name: str, lists: tuple[list[int], list[float]]) -> None:
        """Set the stops to those that another setting implies; a config that was filled in before stays as it is."""
        given = self.stop_steps, self.stop_fractions
        if given not in (lists, (_STOP_STEPS, _STOP_FRACTIONS), ([], [])):
            raise ConfigError(
                f"{name} gives stop_steps and stop_fractions: leave them out or set both to [], "
                f"not to {self.stop_steps} and {self.stop_fractions}"
            )
        self._set_stops(lists)

    def _set_stops(self, lists: tuple[list[int], list[float]]) -> None:
        # The dataclass is frozen; here alone it is changed, so that the config that is stored and digested is the one
        # run.
        object.__setattr__(self, "stop_steps", lists[0])
        object.__setattr__(self, "stop_fractions", lists[1])

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the loss terms, by name."""
        return {each.name: getattr(self, each.name) for each in fields(self) if "weight" in each.metadata}

    @property
    def num_steps(self) -> int:
        """Number of iterations that are run."""
        return self.iterations if self.rebirth is None else self.iterations // self.rebirth * self.rebirth

    @property
    def images_per_run(self) -> int:
        """Images made from one start."""
        return self.rebirth or 1

    def changes(self, num_patches: int) -> dict[int, PatchChange]:
        """Return step → change of the patches alive, for a teacher with that many patches.

        Raises:
            ConfigError: fewer than one patch would be left.
        """
        if self.rebirth is not None:
            return rebirth_changes(num_patches, self.rebirth, self.iterations)
        if self.stop_formula is not None:
            return ratio_changes(num_patches, self.stop_formula.keep_ratio, self.stop_steps)
        return stop_changes(num_patches, self.stop_steps, self.stop_fractions)

    def phases(self, num_patches: int) -> list[tuple[int, int]]:
        """Return the phases of a run in which no image ends early: (number of steps, patches read at each step).

        Raises:
            ConfigError: as `changes`.
        """
        return alive_phases(num_patches, self.changes(num_patches), self.num_steps)

    def notices(self, num_patches: int) -> list[str]:
        """Return what a user should know of the settings that hold in a part of the run alone."""
        first = min(self.changes(num_patches), default=self.num_steps)
        if not self.views.moves or first == self.num_steps:
            return []
        return [f"views.degrees, scale and blur need whole images: they apply to the first {first - 1} steps only"]

    def check(self, num_patches: int) -> None:
        """Check that the schedule suits a teacher with that many patches.

        Raises:
            ConfigError: fewer than one patch would survive, or fewer than 3 with `patch_similarity`; or `adaptive_end`
                is set and no image could ever end early; or `views` would never be shown.
        """
        views, changes = self.views, self.changes(num_patches)
        if views.moves and min(changes, default=self.num_steps + 1) == 1:
            raise ConfigError(
                f"views.degrees {views.degrees:g}, scale {views.scale:g} and blur {views.blur:g} are of whole images, "
                "and patches go at step 1, before one is shown: let stops or rebirth begin later, or set these to 0"
            )
        steps, left = self.phases(num_patches)[-1]
        if self.adaptive_end is not None and self.adaptive_end.hold_steps > steps:
            raise ConfigError(
                f"adaptive_end.hold_steps {self.adaptive_end.hold_steps}: the schedule leaves {steps} steps after its "
                "last change, so that no image would ever end"
            )
        if self.patch_similarity and left < 3:
            raise ConfigError(
                f"patch_similarity compares patches: it needs 3 or more survivors, the schedule leaves {left}"
            )
