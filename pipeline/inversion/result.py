"""Results of an inversion."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Harvest:
    """One image of each start, as it left the run.

    Attributes:
        images: float32 [B, C, H, W] in normalized space, before stopped patches are filled.
        keep_indices: int64 [B, K], ascending.
    """

    images: Tensor
    keep_indices: Tensor


@dataclass(frozen=True)
class InversionResult:
    """What one inversion made.

    Attributes:
        harvests: what left the run, in that order: one, or with Patch Rebirth one for each part of the patches.
        losses: each term's value at every step, on the CPU; the mean over the images that took it.
        num_steps: how many steps each image took, int64 [B], on the CPU; fewer than the others where it ended early.
        micro_batch: the fewest images that a forward was limited to.
        halvings: (step, images in one forward from then on), where memory ran out and the batch was split otherwise
            than asked for.
        compile_s: seconds in which graphs were compiled.
    """

    harvests: list[Harvest]
    losses: dict[str, Tensor]
    num_steps: Tensor
    micro_batch: int
    halvings: list[tuple[int, int]] = field(default_factory=list)
    compile_s: float = 0.0

    @property
    def images(self) -> Tensor:
        """Images of the last harvest, the only one but for Patch Rebirth."""
        return self.harvests[-1].images

    @property
    def keep_indices(self) -> Tensor:
        """Kept patches of the last harvest."""
        return self.harvests[-1].keep_indices
