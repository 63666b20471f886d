"""Steps of the workers of a training: sum gradients over them, and agree on when to save."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.distillation.batches import DistillationBatch
from pipeline.distillation.order import Share
from pipeline.errors import IncompleteError
from pipeline.workers.checkpoint_timer import CheckpointTimer


@dataclass(frozen=True)
class Group:
    """The workers that train together, as one of them sees them.

    Attributes:
        rank: rank of this worker, from 0.
        world_size: number of workers.
        device: device of this worker.
        parallelize: function that wraps a module for several workers, as `ray.train.torch.prepare_model` does; the
            backward pass then averages gradients over the workers. None if there is one worker.
        noticed: function that returns whether a worker's node is about to be taken, see `CheckpointTimer`; None if
            nodes stay.
    """

    rank: int
    world_size: int
    device: torch.device
    parallelize: Callable[[nn.Module], nn.Module] | None = None
    noticed: Callable[[], bool] | None = None

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module with gradients that are averaged over the workers."""
        return module if self.parallelize is None else self.parallelize(module)

    def share(self, batch_size: int, *, seed: int, shuffle_buffer: int) -> Share:
        """Return which images this worker reads; see `Share`."""
        return Share(
            batch_size=batch_size,
            seed=seed,
            rank=self.rank,
            world_size=self.world_size,
            shuffle_buffer=shuffle_buffer,
        )

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over all workers, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, text: str) -> list[str]:
        """Return the texts of all workers, in the order of their ranks."""
        if self.world_size == 1:
            return [text]
        texts: list[str] = [""] * self.world_size
        dist.all_gather_object(texts, text)
        return texts

    def gather_equal(self, digest: str) -> list[str]:
        """Return the digest of each worker's weights, which must be the same.

        Raises:
            IncompleteError: the digests differ.
        """
        digests = self.gather(digest)
        if len(set(digests)) > 1:
            raise IncompleteError(f"the workers ended with different weights: {[text[:8] for text in digests]}")
        return digests


def touch(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return a zero to which each parameter contributes, so that its gradient is zero where it is not used.

    `DistributedDataParallel` waits for the gradient of every parameter. A worker that has run out of images adds zeros
    until all have. PyTorch's way is to leave through `torch.distributed.algorithms.Join`, but then its optimizer would
    miss the steps of the others, and its moments would differ from theirs.
    """
    return sum((p.flatten()[:1].sum() * 0.0 for p in parameters), torch.zeros(()))


def backpropagate(
    objective: nn.Module,
    batch: DistillationBatch | None,
    parameters: Iterable[nn.Parameter],
    group: Group,
    when: CheckpointTimer,
    *,
    loss: int,
) -> Tensor:
    """Give each parameter the gradient of the mean loss over the images of all workers, whatever share each has.

    Args:
        objective: module that maps a batch, or None for no images, to sums over its images: the terms, and last the
            number of images. For several workers it is wrapped in `DistributedDataParallel`, which averages gradients
            over them.
        batch: this worker's share of the batch; None if it has no images left.
        parameters: the parameters that are trained.
        group: the workers that train together.
        when: the timer of checkpoints. About every five seconds all workers ask together whether a node is about to be
            taken.
        loss: index of the term to descend among the sums.

    Returns:
        The sums over all workers, float64 on the CPU; if there was no image, gradients are zero.
    """
    sums = objective(batch)
    sums[loss].backward()
    asks = group.rank == 0 and when.wants_to_ask()
    *values, asked = group.sum(torch.cat([sums.detach(), sums.new_tensor([float(asks)])])).double().cpu()
    if asked:
        when.ask()
    sums = torch.stack(values)
    count = sums[-1].item()
    for parameter in parameters if count else ():
        if parameter.grad is not None:
            # The backward pass averages over workers; the step should average over images.
            parameter.grad /= count / group.world_size
    return sums
