"""Sparse calibration sees what an eager model on the kept tokens sees, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pipeline.quantization import BitWidths
from pipeline.quantization.batches import CalibrationBatch
from pipeline.quantization.bit_widths import Placement
from pipeline.quantization.graphs import Exportable, activation_observers, export_images, prepare
from pipeline.quantization.observe import RangeObserver, cover_stopped
from pipeline.quantization.ranges import Ranges
from pipeline.vit.subset import SubsetViT
from tests.conftest import TINY, enlarge_weights
from tests.quantized import read_ranges


def observe(model: nn.Module, placement: Placement, batches: list[CalibrationBatch]) -> Ranges:
    observer = RangeObserver(model, placement)
    observer.observe(batches)
    return observer.ranges()


class Hooks:
    """Ranges at the points of a placement, seen by forward hooks on the eager model: no graph, no observer."""

    def __init__(self, model: nn.Module, placement: Placement) -> None:
        self.eager = Exportable(model, fused=placement == "linear")
        self.ranges: Ranges = {}
        for name, module in self.eager.model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                self._before(module, f"{name}:input")
                if placement == "published" and not name.endswith("fc1"):
                    self._after(module, f"{name}:output")
        for number, block in enumerate(self.eager.model.blocks):
            if placement == "published":
                self._published(block, number)
            if placement == "matmul":
                self._matmul(block.attn, f"blocks.{number}.attn")

    def _published(self, block: Any, number: int) -> None:
        if number == 0:
            self._before(block, "blocks.0:input")
        self._before(block.norm2, f"blocks.{number}:attention")
        self._after(block, f"blocks.{number}:output")
        name, attention, queries = f"blocks.{number}.attn:logits", block.attn, []
        attention.q_norm.register_forward_hook(lambda _m, _i, query: queries.append(query * attention.scale))
        attention.k_norm.register_forward_hook(lambda _m, _i, key: self._see(name, torch.matmul(queries.pop(), key.mT)))

    def _matmul(self, attention: Any, name: str) -> None:
        attention.q_norm.register_forward_hook(
            lambda _m, _i, query: self._see(f"{name}:query", query * attention.scale)
        )
        self._after(attention.k_norm, f"{name}:key")
        self._after(attention.attn_drop, f"{name}:probability")
        attention.qkv.register_forward_hook(lambda _m, _i, qkv: self._see(f"{name}:value", qkv.chunk(3, dim=-1)[2]))

    def _before(self, module: nn.Module, name: str) -> None:
        module.register_forward_pre_hook(lambda _m, inputs: self._see(name, inputs[0]))

    def _after(self, module: nn.Module, name: str) -> None:
        def see(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._see(name, output)

        module.register_forward_hook(see)

    def _see(self, name: str, value: Tensor) -> None:
        low, high = self.ranges.get(name, (float("inf"), -float("inf")))
        self.ranges[name] = (min(low, value.min().item()), max(high, value.max().item()))


@pytest.mark.parametrize("placement", ["linear", "matmul", "published"])
def test_ragged_ranges_equal_forward_hooks_on_the_eager_model(
    placement: Placement, model: nn.Module, ragged: list[CalibrationBatch]
) -> None:
    hooks = Hooks(model, placement)
    with torch.no_grad():
        for batch in ragged:
            hooks.eager(cover_stopped(batch.images, batch.keep_indices, 8), batch.keep_indices)
    assert observe(model, placement, ragged) == hooks.ranges


def test_the_graph_computes_what_the_gathered_model_does(model: nn.Module, ragged: list[CalibrationBatch]) -> None:
    gathered = SubsetViT(model)
    for batch in ragged:
        with torch.no_grad():
            expected = gathered(batch.images, batch.keep_indices)
            result = Exportable(model)(batch.images, batch.keep_indices)
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("placement", ["linear", "matmul", "published"])
def test_keeping_every_patch_equals_dense_calibration(
    placement: Placement,
    model: nn.Module,
    ragged: list[CalibrationBatch],
    programs: Callable[[Placement], ExportedProgram],
) -> None:
    everything = [CalibrationBatch(b.images, torch.arange(16).repeat(len(b.images), 1), b.image_ids) for b in ragged]
    dense = prepare(programs(placement), BitWidths(), placement)
    with torch.no_grad():
        for batch in ragged:
            dense(batch.images)
    assert observe(model, placement, everything) == read_ranges(dense)


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "vit_base_patch16_gap_224"])
def test_so_it_does_without_a_cls_token(name: str, ragged: list[CalibrationBatch]) -> None:
    torch.manual_seed(0)
    model = enlarge_weights(timm.create_model(name, **{**TINY, "depth": 1})).eval()  # type: ignore[arg-type]
    gathered, dense = Exportable(model), prepare(export_images(model, "linear"), BitWidths(), "linear")
    with torch.no_grad():
        for batch in ragged:
            dense(batch.images)
            read = SubsetViT(model)(batch.images, batch.keep_indices)
            torch.testing.assert_close(gathered(batch.images, batch.keep_indices), read, atol=1e-5, rtol=1e-4)
    everything = [CalibrationBatch(b.images, torch.arange(16).repeat(len(b.images), 1), b.image_ids) for b in ragged]
    assert observe(model, "linear", everything) == read_ranges(dense)
    assert observe(model, "linear", ragged) != read_ranges(dense)


@pytest.mark.parametrize("placement", ["linear", "matmul", "published"])
def test_stopped_patches_change_no_range(
    placement: Placement, model: nn.Module, ragged: list[CalibrationBatch]
) -> None:
    other = []
    for batch in ragged:
        kept = torch.zeros(len(batch.images), 16, dtype=torch.bool).scatter_(1, batch.keep_indices, True)
        pixels = kept.reshape(-1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
        other.append(CalibrationBatch(torch.where(pixels, batch.images, 1000.0), batch.keep_indices, batch.image_ids))
    assert observe(model, placement, other) == observe(model, placement, ragged)


def test_the_embedding_sees_kept_pixels_alone(model: nn.Module, ragged: list[CalibrationBatch]) -> None:
    batch = ragged[0]
    grid = batch.images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    kept = torch.stack([patches[keep] for patches, keep in zip(grid, batch.keep_indices, strict=True)])
    assert observe(model, "linear", [batch])["patch_embed.proj:input"] == (kept.min().item(), kept.max().item())


def test_covering_leaves_kept_patches_alone(ragged: list[CalibrationBatch]) -> None:
    dense = ragged[-1]
    assert torch.equal(cover_stopped(dense.images, dense.keep_indices, 8), dense.images)


def test_ranges_do_not_depend_on_the_bit_width(
    programs: Callable[[Placement], ExportedProgram], ragged: list[CalibrationBatch]
) -> None:
    seen = []
    for bits in (BitWidths(), BitWidths(weights=4, activations=4)):
        prepared = prepare(programs("linear"), bits, "linear")
        with torch.no_grad():
            prepared(ragged[-1].images)
        seen.append(read_ranges(prepared))
        assert all(o.quant_max == 2**bits.activations - 1 for o in activation_observers(prepared).values())
    assert seen[0] == seen[1]
