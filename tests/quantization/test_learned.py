"""Learned scales: gradients as in the paper, and a trained graph that converts to what it computes."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pipeline.artifacts.formats import ending_of, load_quantized, save
from pipeline.distillation.answers import Answers, as_reader
from pipeline.distillation.batches import DistillationBatch
from pipeline.distillation.descent import Group
from pipeline.distillation.losses import soft_label_loss
from pipeline.errors import NonFiniteError
from pipeline.quantization.agreement import relative_error
from pipeline.quantization.batches import CalibrationBatch
from pipeline.quantization.bit_widths import BitWidths, Placement
from pipeline.quantization.graphs import convert, export_images, reexport
from pipeline.quantization.learned import LearnedGraph, round_learned
from pipeline.quantization.mixed import Mixture
from pipeline.quantization.observe import RangeObserver
from pipeline.quantization.qat_config import QatConfig
from pipeline.quantization.qat_loop import QatCheckpoints, QatTrainer, Trained
from pipeline.quantization.ranges import Ranges
from pipeline.quantization.variants import Values, Variant, calibrated_values
from tests.conftest import make_tiny_model, make_whole
from tests.quantized import DATA_FORMATS, FACTS

W3A4 = Variant("w3a4", BitWidths(weights=3, activations=4))
NARROW = BitWidths(weights=3, activations=4)


def test_gradients_are_those_of_the_paper() -> None:
    scale, values = 0.5, torch.tensor([-9.0, -0.6, 0.1, 0.35, 1.4, 9.0])
    given = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    values.requires_grad_()
    scales = torch.tensor([scale], requires_grad=True)
    rounded = round_learned(values, scales, torch.tensor([3.0]), (0, 7))
    # Levels run from -3 to 4 steps.
    torch.testing.assert_close(rounded, scale * torch.tensor([-3.0, -1, 0, 1, 3, 4]))
    rounded.backward(given)
    torch.testing.assert_close(values.grad, torch.tensor([0.0, 2, 3, 4, 5, 0]))
    # Esser et al., eq. 3: the limit where it is clipped, round(v / s) - v / s elsewhere.
    errors = torch.tensor([-3, -1 + 1.2, 0 - 0.2, 1 - 0.7, 3 - 2.8, 4])
    torch.testing.assert_close(scales.grad, (given * errors).sum().reshape(1))


@pytest.mark.parametrize("channels", [1, 5])
def test_gradients_are_those_of_pytorchs_own_fake_quantization(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values, given = torch.randn(2, 5, 40, generator=generator)
    scales, zero_points = torch.rand(channels, 1, generator=generator) * 0.3 + 0.05, torch.full((channels, 1), 6.0)
    own = [each.clone().requires_grad_() for each in (values, scales)]
    theirs = [each.clone().requires_grad_() for each in (values, scales.flatten())]
    first = round_learned(own[0], own[1], zero_points, (0, 15))
    first.backward(given)
    kind, axis = ("tensor", ()) if channels == 1 else ("channel", (0,))
    fake_quantize: Any = getattr(torch, f"_fake_quantize_learnable_per_{kind}_affine")
    second = fake_quantize(*theirs, zero_points.flatten(), *axis, 0, 15, 1.0)
    second.backward(given)
    torch.testing.assert_close(first, second)
    for mine, other in zip(own, theirs, strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(mine.grad.flatten(), other.grad.flatten(), atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def ranges(model: nn.Module, ragged: list[CalibrationBatch]) -> dict[int, Ranges]:
    observer = RangeObserver(model, "matmul")
    observer.observe(ragged)
    return {4: observer.ranges(), 8: observer.ranges()}


def views(model: nn.Module, *, seed: int, num_kept: int = 16) -> Iterator[DistillationBatch]:
    """Noise without end, read at some patches."""
    generator = torch.Generator().manual_seed(seed)
    for number in count():
        pixels = torch.randn(16, 3, 32, 32, generator=generator)
        keep = torch.rand(16, 16, generator=generator).argsort(dim=1)[:, :num_kept].sort(dim=1).values
        kept = torch.full((16,), num_kept)
        yield DistillationBatch(pixels, -torch.ones(16), keep, kept, [f"{number}-{row}" for row in range(16)])


class Views:
    """Training images whose first epoch has no end."""

    order = ""

    def __init__(self, batches: Iterator[DistillationBatch]) -> None:
        self._batches = batches

    def batches(self, epoch: int, device: torch.device) -> Iterator[DistillationBatch]:
        yield from self._batches


def train_on(
    images: Iterator[DistillationBatch], reader: nn.Module, graph: LearnedGraph, folder: Path, **settings: float
) -> Trained:
    config = QatConfig(**{"lr": 1e-3, "scale_lr": 1e-2, **settings})  # type: ignore[arg-type]
    answers = Answers(reader, with_tokens=False, dtype=torch.float32)
    shown: Any = Views(images)
    trainer = QatTrainer(
        config=config,
        label="w3a4",
        graph=graph,
        answers=answers,
        images=shown,
        held_back=None,
        group=Group(0, 1, torch.device("cpu")),
        checkpoints=QatCheckpoints(str(folder), "d" * 64),
        done=lambda _: None,
    )
    return trainer.train(Values({}))


def train(model: nn.Module, graph: LearnedGraph, folder: Path, **settings: float) -> Trained:
    return train_on(views(model, seed=1), as_reader(model), graph, folder, **{"steps": 60, **settings})


@pytest.fixture(scope="module")
def trained(
    model: nn.Module, ranges: dict[int, Ranges], tmp_path_factory: pytest.TempPathFactory
) -> tuple[LearnedGraph, Trained]:
    graph = LearnedGraph(model, "matmul", W3A4, calibrated_values(W3A4, ranges))
    return graph, train(make_tiny_model(), graph, tmp_path_factory.mktemp("trained"))


def divergence(found: Tensor, exact: Tensor) -> Tensor:
    return soft_label_loss(found, exact, 4.0).mean()


def quantize(program: ExportedProgram, placement: Placement, variant: Variant, values: Values) -> ExportedProgram:
    own = values.ranges, variant.layers, values.parameters, values.scales
    return reexport(convert(program, variant.bits, placement, *own), program)


@torch.no_grad()
def answer(module: nn.Module, batch: DistillationBatch) -> Tensor:
    return module(batch.pixels)


@pytest.mark.parametrize("mixed", [False, True])
def test_before_training_it_computes_what_the_calibrated_model_does(
    mixed: bool, model: nn.Module, ranges: dict[int, Ranges], programs: Callable[[Placement], ExportedProgram]
) -> None:
    variant = W3A4
    if mixed:
        layers = {point.partition(":")[0]: NARROW for point in ranges[4]}
        layers |= {"head": BitWidths(), "blocks.0.attn": BitWidths()}
        variant = Variant("mixed", BitWidths(), Mixture(layers, 4.0, 0.0))
    start = calibrated_values(variant, ranges)
    graph = LearnedGraph(model, "matmul", variant, start)
    batch = next(views(model, seed=2))
    with torch.no_grad():
        found = graph(batch)
    expected = answer(convert(programs("matmul"), variant.bits, "matmul", start.ranges, variant.layers), batch)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert relative_error(found, answer(model, batch)) > 0.1


def test_parameters_of_the_calibration_are_where_training_starts(
    model: nn.Module, ranges: dict[int, Ranges], programs: Callable[[Placement], ExportedProgram]
) -> None:
    name = "model.head.bias"
    start = replace(calibrated_values(W3A4, ranges), parameters={name: torch.arange(10.0)})
    graph = LearnedGraph(model, "matmul", W3A4, start)
    values = graph.values()
    assert values.parameters is not None
    assert torch.equal(values.parameters[name], torch.arange(10.0))
    batch = next(views(model, seed=2))
    expected = answer(quantize(programs("matmul"), "matmul", W3A4, start).module(), batch)
    with torch.no_grad():
        torch.testing.assert_close(graph(batch), expected, atol=1e-3, rtol=1e-3)


def test_training_brings_the_answers_nearer_to_the_float_models_on_other_images(
    model: nn.Module,
    ranges: dict[int, Ranges],
    trained: tuple[LearnedGraph, Trained],
    programs: Callable[[Placement], ExportedProgram],
) -> None:
    batch = next(views(model, seed=3))
    exact, program = answer(model, batch), programs("matmul")
    before = answer(quantize(program, "matmul", W3A4, calibrated_values(W3A4, ranges)).module(), batch)
    after = answer(quantize(program, "matmul", W3A4, trained[1].values).module(), batch)
    assert trained[1].last_loss < 0.6 * trained[1].first_loss
    assert divergence(after, exact) < 0.7 * divergence(before, exact)


def test_each_artifact_computes_what_was_trained(
    model: nn.Module,
    ranges: dict[int, Ranges],
    trained: tuple[LearnedGraph, Trained],
    programs: Callable[[Placement], ExportedProgram],
    tmp_path: Path,
) -> None:
    graph, found = trained
    batch = next(views(model, seed=3))
    with torch.no_grad():
        expected = graph(batch)
    program = quantize(programs("matmul"), "matmul", W3A4, found.values)
    assert relative_error(answer(program.module(), batch), expected) < 1e-3
    for kind in DATA_FORMATS:
        path = tmp_path / f"w3a4{ending_of(kind)}"
        save(program, path, FACTS)
        assert relative_error(load_quantized(path).predict(batch.pixels), expected) < 1e-3


def test_everything_is_learned_and_the_model_is_left_as_it_is(
    model: nn.Module, ranges: dict[int, Ranges], trained: tuple[LearnedGraph, Trained]
) -> None:
    found = trained[1]
    start = LearnedGraph(model, "matmul", W3A4, calibrated_values(W3A4, ranges)).values()
    values = found.values
    assert values.ranges.keys() == ranges[4].keys()
    assert all(values.ranges[point] != start.ranges[point] for point in ranges[4])
    assert all(low <= 0 <= high for low, high in values.ranges.values())
    assert values.scales is not None
    assert start.scales is not None
    assert all(not torch.equal(values.scales[name], start.scales[name]) for name in start.scales)
    assert values.parameters is not None
    names = {f"model.{name}" for name, _ in model.named_parameters()}
    assert values.parameters.keys() == names
    assert all(
        torch.equal(own, other) for own, other in zip(model.parameters(), make_tiny_model().parameters(), strict=True)
    )
    for name, scales in values.scales.items():
        levels = values.parameters[name].flatten(1) / scales[:, None]
        torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
        assert levels.abs().max() <= 4.001


def test_equal_seeds_train_the_same_bits(model: nn.Module, ranges: dict[int, Ranges], tmp_path: Path) -> None:
    start = calibrated_values(W3A4, ranges)
    first, second = (
        train(make_tiny_model(), LearnedGraph(model, "matmul", W3A4, start), tmp_path / name, steps=3)
        for name in ("first", "second")
    )
    assert first.values.ranges == second.values.ranges
    assert first.values.parameters is not None
    assert second.values.parameters is not None
    assert all(torch.equal(value, second.values.parameters[name]) for name, value in first.values.parameters.items())


def test_images_that_keep_different_numbers_of_patches_are_read_at_those(
    model: nn.Module, ranges: dict[int, Ranges]
) -> None:
    graph = LearnedGraph(model, "matmul", W3A4, calibrated_values(W3A4, ranges))
    few, all_of_them = next(views(model, seed=4, num_kept=5)), next(views(model, seed=4))
    padded = torch.cat([few.keep_indices, torch.zeros(16, 11, dtype=torch.int64)], dim=1)
    order = torch.arange(32).view(2, 16).T.flatten()
    both = DistillationBatch(
        torch.cat([few.pixels, all_of_them.pixels])[order],
        torch.zeros(32),
        torch.cat([padded, all_of_them.keep_indices])[order],
        torch.cat([few.num_kept, all_of_them.num_kept])[order],
        [],
    )
    with torch.no_grad():
        expected = torch.cat([graph(few), graph(all_of_them)])[order]
        torch.testing.assert_close(graph(both), expected, atol=1e-4, rtol=1e-4)


def test_a_model_that_reads_whole_images_is_trained_as_well(tmp_path: Path) -> None:
    model = make_whole("swin_tiny_patch4_window7_224")
    generator = torch.Generator().manual_seed(0)
    observer = RangeObserver(model, "linear")
    keep = torch.zeros(4, 1, dtype=torch.int64)
    pixels = torch.randn(4, 3, 64, 64, generator=generator)
    observer.observe([CalibrationBatch(pixels, keep, list("abcd"))])
    graph = LearnedGraph(model, "linear", W3A4, calibrated_values(W3A4, {4: observer.ranges()}))
    batch = DistillationBatch(pixels, torch.zeros(4), keep, torch.ones(4, dtype=torch.int64), list("abcd"))
    found = train_on((batch for _ in count()), model, graph, tmp_path, steps=6)
    assert found.last_loss < found.first_loss
    program = quantize(export_images(model, "linear"), "linear", W3A4, found.values)
    with torch.no_grad():
        assert relative_error(answer(program.module(), batch), graph(batch)) < 1e-3


def test_a_loss_that_is_not_finite_ends_the_training(
    model: nn.Module, ranges: dict[int, Ranges], tmp_path: Path
) -> None:
    graph = LearnedGraph(model, "matmul", W3A4, calibrated_values(W3A4, ranges))
    with pytest.raises(NonFiniteError, match="qat loss of w3a4 is not finite at step 1"):
        train(make_tiny_model(), graph, tmp_path, lr=1e30)
