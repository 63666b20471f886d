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
    """Images of one inversion, with the values of its losses and the steps that it took.

    Attributes:
        harvests: images in the order in which they left the run; with Patch Rebirth one harvest for each part of the
            patches, otherwise one.
        losses: values of each term, one for every step, on the CPU: the mean over the images still in the batch.
        num_steps: int64 [B], on the CPU: number of steps that each image took, which is smaller where it ended early.
        micro_batch: smallest number of images in one forward and backward pass of the run.
        halvings: one entry for each time that memory ran out and the micro-batch was halved: (step, images in one
            forward pass from then on).
        compile_s: seconds spent compiling graphs.
    """

    harvests: list[Harvest]
    losses: dict[str, Tensor]
    num_steps: Tensor
    micro_batch: int
    halvings: list[tuple[int, int]] = field(default_factory=list)
    compile_s: float = 0.0

    @property
    def images(self) -> Tensor:
        """Images of the last harvest, which without Patch Rebirth is the only one."""
        return self.harvests[-1].images

    @property
    def keep_indices(self) -> Tensor:
        """Kept patches of the last harvest."""
        return self.harvests[-1].keep_indices
