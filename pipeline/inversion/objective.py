"""Objective of a step: the weighted terms of a batch, and their gradient with respect to its pixels."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.inversion.compiled import Compiled
from pipeline.inversion.config import InversionConfig
from pipeline.inversion.teacher import AnyTeacher
from pipeline.inversion.terms import Term
from pipeline.inversion.viewing import View, Viewer
from pipeline.out_of_memory import as_out_of_memory
from pipeline.vit.ranking import Ranking


class InversionObjective:
    """The weighted sum of the loss terms, computed in parts to save memory.

    Each part adds its gradient to that of the images and then frees what it computed.

    Args:
        teacher: a teacher as `frozen_copy` returns it.
        terms: loss terms that `check_terms` has accepted.
        config: scope and dtype of the run.
        ranking: how patches are ranked.
    """

    def __init__(self, teacher: AnyTeacher, terms: Sequence[Term], config: InversionConfig, ranking: Ranking) -> None:
        self._teacher = teacher
        self._published = config.scope == "published"
        self._view_terms = [term for term in terms if term.sees != "pixels"]
        self._pixel_terms = [term for term in terms if term.sees == "pixels"]
        watched = any(term.sees == "blocks" for term in terms)
        self._viewer = Viewer(teacher, dtype=config.dtype, ranking=ranking, watched=watched)
        self._look: Compiled | None = None
        self._compiled: list[Compiled] = []

    @property
    def couples_images(self) -> bool:
        """Whether a term is defined on the whole batch alone."""
        return any(term.couples_images for term in self._view_terms)

    def check_split(self, batch: int, micro_batch: int) -> None:
        """Refuse micro-batches of a batch that a term couples.

        Raises:
            ConfigError: the batch has more images than a micro-batch.
        """
        if self.couples_images and micro_batch < batch:
            raise ConfigError(
                f"micro_batch {micro_batch} splits a batch of {batch}, and the published feature prior is defined on "
                "the whole batch: use scope image"
            )

    @property
    def compile_s(self) -> float:
        """Seconds in which graphs were compiled."""
        return sum(piece.compile_s for piece in self._compiled)

    def compile(self, device: torch.device, *, batch: int, max_rows: int) -> None:
        """Compile the parts that run in every step.

        Args:
            device: device of the run.
            batch: number of images in the run.
            max_rows: largest number of images in a view.
        """
        self._look = Compiled(type(self._teacher).look, self._teacher, device=device, max_rows=max_rows)
        limit = None if self._published else batch
        pieces = [Compiled(term.compute, device=device, max_rows=limit) for term in self._pixel_terms]
        self._viewer.look = self._look
        self._pixel_terms = [
            replace(term, compute=piece) for term, piece in zip(self._pixel_terms, pieces, strict=True)
        ]
        self._compiled = [self._look, *pieces]

    def show_at_most(self, max_rows: int) -> None:
        """Limit later views to that many images."""
        if self._look is not None:
            self._look.max_rows = max_rows

    @as_out_of_memory()
    @torch.enable_grad()
    def backward_views(self, view: View, parts: Sequence[slice], rank: bool) -> tuple[dict[str, Tensor], Tensor | None]:
        """Add the gradients of the terms that see views, micro-batch by micro-batch.

        Args:
            view: the whole batch as this step shows it.
            parts: the micro-batches of the batch, in order.
            rank: whether patches are to be ranked.

        Returns:
            The value of each term for each image, [b], detached; and the scores of the patches [b, K].

        Raises:
            torch.OutOfMemoryError: a micro-batch does not fit into memory, of a GPU or a CPU.
        """
        share = 1 / len(view.images) if self._published else 1.0
        scores: list[Tensor] | None = [] if rank else None
        values = [self._backward_part(view.part(rows), share, scores) for rows in parts]
        together = {name: torch.cat([part[name] for part in values]) for name in values[0]}
        return together, torch.cat(scores) if scores else None

    def _backward_part(self, view: View, share: float, scores: list[Tensor] | None) -> dict[str, Tensor]:
        shown = self._viewer.show(view, scores)
        values = [(term, term.compute(shown).expand(len(shown.targets))) for term in self._view_terms]
        loss = sum((term.weight * value.sum() for term, value in values), view.images.new_zeros(()))
        (share * loss).backward()
        return {term.name: value.detach() for term, value in values}

    @as_out_of_memory()
    @torch.enable_grad()
    def backward_pixels(self, images: Tensor) -> dict[str, Tensor]:
        """Add the gradients of the terms that see pixels, for the whole batch, including stopped patches, as published.

        Args:
            images: float32 [b, C, H, W], the leaf that is optimized.

        Returns:
            The mean of each term over the images, detached.

        Raises:
            torch.OutOfMemoryError: the images do not fit into memory, of a GPU or a CPU.
        """
        values = [(term, term.compute(images)) for term in self._pixel_terms]
        if values:
            reduced = [term.weight * (value.mean() if self._published else value.sum()) for term, value in values]
            torch.stack(reduced).sum().backward()
        return {term.name: value.detach().mean() for term, value in values}


def check_terms(terms: Sequence[Term], teacher: AnyTeacher, config: InversionConfig) -> None:
    """Refuse a list of terms that cannot be run.

    Raises:
        ConfigError: two have the same name, none sees a view, none has a weight, or the class loss is missing that an
            adaptive end reads.
        ModelError: a term reads the attention of the teacher's blocks, which this teacher does not show.
    """
    names = [term.name for term in terms]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ConfigError(f"terms: more than one is named {repeated!r}")
    if all(term.sees == "pixels" for term in terms):
        raise ConfigError(f"terms: {names} see pixels alone, and the teacher is never asked; add the class loss")
    if config.iterations and not any(term.weight for term in terms):
        raise ConfigError(
            f"every term of the loss has the weight 0 ({', '.join(names)}), and {config.iterations} iterations would "
            "leave the images as they start: give one a weight"
        )
    if config.adaptive_end is not None and "class_loss" not in names:
        raise ConfigError("terms: adaptive_end reads the term class_loss, which is missing")
    for term in terms:
        if term.sees == "blocks":
            teacher.check_blocks(term.name)
