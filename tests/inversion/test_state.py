"""A run that goes on from a state ends with the bits of one that was not disturbed."""

import io
from typing import Any

import pytest
import torch

from pipeline.errors import CheckpointError, NonFiniteError
from pipeline.inversion import (
    AdaptiveEnd,
    Disagreement,
    Inversion,
    InversionConfig,
    InversionResult,
    Teacher,
    Term,
    ViewConfig,
    build_terms,
)
from tests.inversion.test_engine import AStudent, ShortOfMemory, make_prior

TARGETS = torch.tensor([3, 1, 4, 1, 5])
SEEDS = [10, 11, 12, 13, 14]
STOPS: dict[str, Any] = {"stop_steps": [3, 6], "stop_fractions": [0.5, 0.25]}
DENSE: dict[str, Any] = {"stop_steps": [], "stop_fractions": []}
VIEWS = ViewConfig(degrees=5.0, scale=0.1, blur=0.5, noise=0.1)
# The images end one after another, from step 16 to 25, or 19 to 43.
ENDS: dict[str, Any] = {
    **{"iterations": 50, "lr": 0.03, "jitter": 0.0, "flip": 0.0, "stop_steps": [5, 10], "stop_fractions": [0.5, 0.25]},
    "adaptive_end": AdaptiveEnd(confidence=0.8, hold_steps=3),
}
RUNS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "dense": (DENSE, [0, 5, 9]),
    "sparse": (STOPS, [1, 2, 3, 4, 5, 6, 9]),
    "bfloat16": ({**STOPS, "dtype": "bfloat16"}, [4]),
    "micro-batches": ({**STOPS, "micro_batch": 2}, [2, 3, 7]),
    "rebirth": ({"rebirth": 3}, [2, 3, 4, 6, 8]),
    "views": ({**STOPS, "views": VIEWS}, [1, 4]),
    "cosine": ({**STOPS, "basis": "cosine"}, [3, 7]),
    "published": ({**STOPS, "scope": "published", "views": VIEWS}, [1, 4]),
    "adaptive end": (ENDS, [12, 17, 22]),
    "adaptive end, cosine, views": ({**ENDS, "basis": "cosine", "views": VIEWS}, [20, 26, 40]),
}


def start(teacher: Teacher, settings: dict[str, Any], terms: list[Term] | None = None) -> Inversion:
    config = InversionConfig(**{"iterations": 10, "lr": 0.1, **settings})
    return Inversion(teacher, TARGETS, config, seeds=SEEDS, terms=terms)


def finish(run: Inversion) -> InversionResult:
    while not run.finished:
        run.step()
    return run.result()


def stored(state: dict[str, Any]) -> dict[str, Any]:
    """Write a state to a file, and read it back."""
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def check_equal(first: InversionResult, second: InversionResult) -> None:
    for one, other in zip(first.harvests, second.harvests, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.keep_indices, other.keep_indices)
    assert first.losses.keys() == second.losses.keys()
    assert all(torch.equal(first.losses[name], second.losses[name]) for name in first.losses)
    assert torch.equal(first.num_steps, second.num_steps)
    assert (first.micro_batch, first.halvings) == (second.micro_batch, second.halvings)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_to_the_same_bits(tiny_teacher: Teacher, name: str) -> None:
    settings, steps = RUNS[name]
    run, states = start(tiny_teacher, settings), {}
    while not run.finished:
        if run.num_steps in steps:
            states[run.num_steps] = stored(run.state())
        run.step()
    whole = run.result()
    if "adaptive_end" in settings:
        assert len(whole.num_steps.unique()) > 2
    # States of states: a run may be cut off more than once.
    for step in steps:
        second = start(tiny_teacher, settings)
        second.load_state(states[step])
        assert second.num_steps == step
        if not second.finished:
            second.step()
        third = start(tiny_teacher, settings)
        third.load_state(stored(second.state()))
        check_equal(finish(third), whole)


def test_a_run_that_ran_out_of_memory_goes_on_in_the_same_pieces(tiny_teacher: Teacher) -> None:
    tiny_teacher.model.blocks[0] = ShortOfMemory(tiny_teacher.model.blocks[0], max_tokens=34)
    whole = finish(start(tiny_teacher, STOPS))
    run = start(tiny_teacher, STOPS)
    for _ in range(4):
        run.step()
    second = start(tiny_teacher, STOPS)
    second.load_state(stored(run.state()))
    result = finish(second)
    assert result.halvings[:2] == [(0, 3), (0, 2)]
    check_equal(result, whole)


def test_terms_with_networks_of_their_own_need_no_state(tiny_teacher: Teacher) -> None:
    settings = {**STOPS, "feature_prior": 1.0, "adversarial": 1.0, "patch_similarity": 1.0}

    def begin() -> Inversion:
        disagreement = Disagreement(AStudent(reads_kept=True), reads_kept=True)
        terms = build_terms(InversionConfig(**settings), feature_prior=make_prior(), disagreement=disagreement)
        return start(tiny_teacher, settings, terms)

    run, second = begin(), begin()
    for _ in range(4):
        run.step()
    second.load_state(stored(run.state()))
    check_equal(finish(second), finish(run))


def test_a_state_is_a_copy(tiny_teacher: Teacher) -> None:
    """The run changes its tensors in place, while another thread may be writing the state."""
    run = start(tiny_teacher, STOPS)
    run.step()
    state = run.state()
    before = stored(state)
    run.step()
    assert torch.equal(state["optimizer"]["images"], before["optimizer"]["images"])
    assert all(
        torch.equal(value, before["optimizer"]["adam"][name]) for name, value in state["optimizer"]["adam"].items()
    )
    assert state["optimizer"]["adam"].keys() == {"step", "exp_avg", "exp_avg_sq"}


def test_the_state_of_another_run_is_refused_and_the_run_may_begin(tiny_teacher: Teacher) -> None:
    run = start(tiny_teacher, STOPS)
    state = run.state()
    state["optimizer"]["images"] = torch.zeros(5, 3, 8, 8)
    for other in (state, {}, {"num_steps": 4}):
        second = start(tiny_teacher, STOPS)
        with pytest.raises(CheckpointError, match="another run, or of another version"):
            second.load_state(other)
        check_equal(finish(second), finish(start(tiny_teacher, STOPS)))


def test_a_run_that_is_not_finite_has_no_state(tiny_teacher: Teacher) -> None:
    run = start(tiny_teacher, STOPS)
    run.step()
    with torch.no_grad():
        run.images.fill_(torch.nan)
    run.step()
    with pytest.raises(NonFiniteError):
        run.state()
