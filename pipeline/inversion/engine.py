"""Sparse model inversion of one batch: from a start to images that the teacher gives their class.

Source: Hu et al., Sparse Model Inversion, ICML 2024 (arXiv 2510.27186), sections 3 and 4. The order of a step, where
the paper leaves it open, follows the published run described in tests/data/README.md. Patch Rebirth: Heo & Choi, arXiv
2509.23235.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import CheckpointError, NonFiniteError
from pipeline.inversion.arguments import checked_images, checked_jitter, checked_seeds, checked_targets
from pipeline.inversion.config import InversionConfig
from pipeline.inversion.draws import draw_jitter, generators_of
from pipeline.inversion.ending import ConfidenceTracker, EndedImages
from pipeline.inversion.frozen import frozen_copy
from pipeline.inversion.objective import InversionObjective, check_terms
from pipeline.inversion.optimizer import ImageOptimizer
from pipeline.inversion.patches import all_patches, split_best
from pipeline.inversion.result import Harvest, InversionResult
from pipeline.inversion.schedule import PatchChange
from pipeline.inversion.splitting import MicroBatches
from pipeline.inversion.starts import draw_start
from pipeline.inversion.state import moved
from pipeline.inversion.teacher import AnyTeacher, Teacher
from pipeline.inversion.terms import Term, build_terms
from pipeline.inversion.viewing import View
from pipeline.inversion.views import draw_views
from pipeline.torch_modes import usual_modes

# Losses stay on the device: reading them makes the host wait. A run that turned NaN goes on this many steps at most.
CHECK_EVERY = 25


class Inversion:
    """A running inversion, with the arguments of `invert`: call `step` until it is `finished`, then `result`.

    Attributes:
        images: float32 [b, C, H, W], the images that have not ended; `.grad` holds the last step's gradient.
        keep_indices: int64 [b, K], the patches alive in these images.
        num_steps: number of steps done.
    """

    @usual_modes()
    def __init__(
        self,
        teacher: AnyTeacher,
        targets: Tensor,
        config: InversionConfig,
        *,
        seeds: Sequence[int],
        init: Tensor | None = None,
        jitter: Tensor | None = None,
        terms: Sequence[Term] | None = None,
    ) -> None:
        config.check(teacher.num_patches)
        self.targets = checked_targets(targets, teacher.num_classes).to(teacher.mean.device)
        generators = generators_of(checked_seeds(seeds, len(targets)))
        self.terms = build_terms(config) if terms is None else list(terms)
        check_terms(self.terms, teacher, config)
        self._split = MicroBatches(len(targets), config.micro_batch or len(targets))
        self._halvings: list[tuple[int, int]] = []
        device = teacher.mean.device
        start = draw_start(teacher, generators, config)
        self.teacher = frozen_copy(teacher, config.dtype, compiled=config.compile)
        self.config = config
        self._objective = InversionObjective(self.teacher, self.terms, config, teacher.resolve_ranking(config))
        start = start if init is None else checked_images(init, start.shape).to(device)
        self._optimizer = ImageOptimizer(start, self.teacher, config)
        self.keep_indices = all_patches(len(targets), teacher.num_patches, device)
        self.num_steps = 0
        self._changes = config.changes(teacher.num_patches)
        self._harvests: list[Harvest] = []
        self._ending = self._make_ending(len(targets), device)
        self._still = self._still_steps()
        # Drawn even if a jitter is given, so that the views, which the same seeds draw next, do not depend on that.
        drawn = self._draw(generators)
        self._jitter = (drawn if jitter is None else checked_jitter(jitter, drawn.shape)).to(device)
        alike = config.scope == "published"
        self._views = draw_views(generators, config.num_steps, config.views, alike=alike, device=device)
        self._history = torch.zeros(config.num_steps, len(self.terms), dtype=torch.float32, device=device)
        self._scores: Tensor | None = None
        self._class_losses: Tensor = self.images.new_zeros(0)
        self._ended = EndedImages(len(targets), config.num_steps, device)
        self._objective.check_split(len(self.targets), self.micro_batch)
        self._checked = 0
        if config.compile:
            self._objective.compile(device, batch=len(targets), max_rows=self.micro_batch)
        # A network that reads whole images needs as much memory however few patches are alive.
        others_read_whole = any(term.network == "whole" for term in self.terms)
        self._prefix = teacher.num_prefix_tokens if isinstance(teacher, Teacher) and not others_read_whole else None

    @property
    def images(self) -> Tensor:
        return self._optimizer.images

    @property
    def micro_batch(self) -> int:
        """Largest number of images in one forward and backward pass."""
        return self._split.size

    @property
    def fewest(self) -> int:
        """Smallest value that `micro_batch` has had in this run."""
        return self._split.fewest

    @property
    def finished(self) -> bool:
        """Whether no step is left to do."""
        return self.num_steps == self.config.num_steps or not len(self.images)

    def _make_ending(self, batch: int, device: torch.device) -> ConfidenceTracker | None:
        end, first, num_steps = self.config.adaptive_end, max(self._changes, default=0), self.config.num_steps
        return end and ConfidenceTracker(end, first_step=first, num_steps=num_steps, batch=batch, device=device)

    def _draw(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Return the jitter [steps, B, 3], none at still steps."""
        config = self.config
        published = config.scope == "published"
        table = draw_jitter(
            generators[:1] if published else generators,
            config.num_steps,
            largest_shift=int(self.teacher.image_size * config.jitter),
            flip_probability=config.flip,
        )
        table[sorted(self._still)] = 0
        return table.expand(-1, len(self.images), -1)

    def _still_steps(self) -> set[int]:
        """Return the steps that show images as they are: those that rank or stop patches, or end images."""
        ends = [] if self._ending is None else self._ending.still_steps
        return {still for step in self._changes for still in (step - 1, step)} | set(ends)

    def _view(self) -> View:
        """Return the whole batch as this step shows it."""
        step, draws = self.num_steps, None
        if self._views is not None and step not in self._still:
            draws = self._views.at(step, moves=step < min(self._changes, default=self.config.num_steps))
        return View(self.images, self.keep_indices, self._jitter[step], self.targets, draws)

    @usual_modes()
    def step(self) -> None:
        """One step of the optimizer, after stopping or detaching what the schedule says.

        Raises:
            NonFiniteError: within `CHECK_EVERY` steps of the first value that is not finite.
        """
        change = self._changes.get(self.num_steps)
        if change is not None:
            self._change(change)
        values = self._backward()
        going = None if self._ending is None else self._put_aside(self._ending)
        self._history[self.num_steps] = torch.stack([values[term.name] for term in self.terms])
        self._optimizer.step()
        self.num_steps += 1
        if self.num_steps - self._checked >= CHECK_EVERY:
            self._check_finite()
        if self._ending is not None and going is not None:
            self._go_on_with(self._ending, going)

    def _change(self, change: PatchChange) -> None:
        """Stop patches, or detach them as images of their own."""
        assert self._scores is not None, "the step before a change ranks the patches"
        chosen, others = split_best(self.keep_indices, self._scores, change.count)
        if change.detaches:
            # The pixels go on changing: total variation and momentum act on patches that have left too.
            self._harvests.append(Harvest(self.images.detach().clone(), chosen))
        before = self.keep_indices.shape[1]
        self.keep_indices = others if change.detaches else chosen
        if self._prefix is not None:
            self._split.grow(len(self.images), self._prefix + before, self._prefix + self.keep_indices.shape[1])
        self._objective.show_at_most(self.micro_batch)

    def _put_aside(self, ending: ConfidenceTracker) -> Tensor | None:
        """Save images that the teacher is now sure of; return the rows that continue, or None if no image ended."""
        ended = ending.watch(self.num_steps, self._class_losses)
        if ended is None or not bool(ended.any()):
            return None
        self._ended.add(ended, self._going, self.num_steps + 1)
        return (~ended).nonzero().squeeze(1)

    def _go_on_with(self, ending: ConfidenceTracker, rows: Tensor) -> None:
        """Narrow the batch, and everything that is kept per image, to the given rows."""
        self._optimizer.keep(rows)
        self.keep_indices = self.keep_indices[rows]
        self._ended.keep(rows)
        ending.keep(rows)
        self._draw_for(rows)

    def _draw_for(self, rows: Tensor) -> None:
        """Narrow targets, jitter and views to the given rows of the batch, int64 [b]."""
        self.targets, self._jitter = self.targets[rows], self._jitter[:, rows]
        self._views = self._views and self._views.keep(rows)

    @usual_modes()
    def result(self) -> InversionResult:
        """The images so far.

        Raises:
            NonFiniteError: a loss term or the pixels are not finite.
        """
        self._check_finite()
        harvests = [*self._harvests, self._ended.with_others(self._going)]
        if not all(bool(torch.isfinite(harvest.images).all()) for harvest in harvests):
            raise NonFiniteError(self.num_steps - 1, "pixels")
        history = self._history[: self.num_steps].cpu()
        return InversionResult(
            harvests=harvests,
            losses=dict(zip((term.name for term in self.terms), history.unbind(dim=1), strict=True)),
            num_steps=self._ended.steps.clamp(max=self.num_steps),
            micro_batch=self.fewest,
            halvings=self._halvings,
            compile_s=self._objective.compile_s,
        )

    @property
    def _going(self) -> Harvest:
        """Return the images that have not ended, as they are now."""
        return Harvest(self.images.detach(), self.keep_indices)

    @usual_modes()
    def state(self) -> dict[str, Any]:
        """Return everything that `load_state` needs, on the CPU, as plain data; what is drawn from the seeds is not.

        Raises:
            NonFiniteError: as `result`.
        """
        self._check_finite()
        return moved(self._state(), torch.device("cpu"))

    def _state(self) -> dict[str, Any]:
        return {
            "num_steps": self.num_steps,
            "optimizer": self._optimizer.state(),
            "keep_indices": self.keep_indices,
            "scores": self._scores,
            "history": self._history[: self.num_steps],
            "harvests": [(harvest.images, harvest.keep_indices) for harvest in self._harvests],
            "ended": self._ended.state(),
            "ending": None if self._ending is None else self._ending.state(),
            "micro_batches": self._split.state(),
            "halvings": list(self._halvings),
        }

    @usual_modes()
    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where a run with equal arguments was when `state` was taken, to the same bits on devices of one kind.

        Args:
            state: what `state` returned in a run with equal arguments: teacher, targets, config, seeds and the rest.

        Raises:
            CheckpointError: the state cannot come from such a run. This run is then left as it was.
        """
        assert self.num_steps == 0, "a state is loaded into a run that has not begun"
        if state.keys() != self._state().keys() or state["optimizer"]["images"].shape[1:] != self.images.shape[1:]:
            raise CheckpointError("the state is that of another run, or of another version of this software")
        state = moved(state, self.images.device)
        self.num_steps = self._checked = state["num_steps"]
        self._optimizer.load_state(state["optimizer"])
        self.keep_indices, self._scores = state["keep_indices"], state["scores"]
        self._history[: self.num_steps] = state["history"]
        self._harvests = [Harvest(*harvest) for harvest in state["harvests"]]
        self._ended.load_state(state["ended"])
        if self._ending is not None:
            self._ending.load_state(state["ending"])
        if len(self._ended.rows) < len(self.targets):
            self._draw_for(self._ended.rows)
        self._split.load_state(state["micro_batches"])
        self._halvings = list(state["halvings"])
        self._objective.show_at_most(self.micro_batch)

    def _check_finite(self) -> None:
        finite = torch.isfinite(self._history[: self.num_steps])
        if not bool(finite.all()):
            step, term = (~finite).nonzero()[0].tolist()
            raise NonFiniteError(step, self.terms[term].name)
        self._checked = self.num_steps

    def _backward(self) -> dict[str, Tensor]:
        """Fill in the gradient. Return the value of each term, detached."""
        view = self._view()
        rank = self.num_steps + 1 in self._changes
        while True:
            self._optimizer.zero_grad()
            try:
                seen, self._scores = self._objective.backward_views(view, self._split.slices(len(self.images)), rank)
                self._class_losses = seen.get("class_loss", self._class_losses)
                values = {name: value.mean() for name, value in seen.items()}
                return values | self._objective.backward_pixels(self.images)
            except torch.OutOfMemoryError:
                # The step has changed nothing yet: run it again in smaller pieces, and stay there.
                if self.micro_batch == 1 or self._objective.couples_images:
                    raise
                self._split.halve()
                self._halvings.append((self.num_steps, self.micro_batch))
