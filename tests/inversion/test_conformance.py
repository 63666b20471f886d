"""The engine against a recorded run of the published method (tests/data/README.md)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from pipeline.inversion import Inversion, InversionConfig, Teacher
from tests.conftest import requires_gpu

RECORD = Path(__file__).parents[1] / "data" / "reference_trace.npz"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    with np.load(RECORD, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=requires_gpu)])
def replayed(request: pytest.FixtureRequest, recorded: dict[str, Any]) -> dict[str, Any]:
    """The recorded run, done again by the engine."""
    hparams = json.loads(str(recorded["hparams"]))
    run = _inversion(recorded, hparams, request.param)
    keeps: dict[int, torch.Tensor] = {}
    first_gradient = torch.empty(0)
    for step in range(hparams["iterations"]):
        run.step()
        if step == 0:
            assert run.images.grad is not None
            first_gradient = run.images.grad.flatten().cpu().clone()
        if step in recorded["stop_steps"]:
            keeps[step] = run.keep_indices
    result = run.result()
    return {
        "keep": keeps,
        "ce": result.losses["class_loss"],
        "grad": first_gradient,
        "final": result.images.flatten().cpu(),
    }


def _inversion(recorded: dict[str, Any], hparams: dict[str, Any], device: str) -> Inversion:
    sizes = {k: hparams[k] for k in ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_classes")}
    model = VisionTransformer(**sizes)
    weights = {k.removeprefix("teacher/"): torch.from_numpy(v) for k, v in recorded.items() if k.startswith("teacher/")}
    model.load_state_dict(weights)
    jitter = torch.zeros(hparams["iterations"], 2, 3, dtype=torch.int64)
    for step, *row in recorded["jitter"].tolist():
        jitter[step] = torch.tensor(row)
    config = InversionConfig(
        iterations=hparams["iterations"],
        lr=hparams["lr"],
        betas=tuple(hparams["betas"]),
        class_weight=hparams["ce"],
        tv_l2=hparams["tv_l2"],
        scope="published",
        stop_steps=recorded["stop_steps"].tolist(),
        stop_fractions=recorded["stop_fractions"].tolist(),
    )
    return Inversion(
        Teacher(model, mean=hparams["mean"], std=hparams["std"]).to(device),
        torch.from_numpy(recorded["targets"]),
        config,
        seeds=[0, 1],
        init=torch.from_numpy(recorded["init"]).float(),
        jitter=jitter,
    )


def test_the_same_patches_survive_every_stop(recorded: dict[str, Any], replayed: dict[str, Any]) -> None:
    for step, keep in replayed["keep"].items():
        assert [set(row) for row in keep.tolist()] == [set(row) for row in recorded[f"keep/{step}"].tolist()]
    assert len(replayed["keep"]) == 4


def test_class_loss_at_every_step(recorded: dict[str, Any], replayed: dict[str, Any]) -> None:
    assert np.abs(replayed["ce"].numpy() - recorded["ce"]).max() < 1e-3


def test_first_gradient(recorded: dict[str, Any], replayed: dict[str, Any]) -> None:
    assert np.abs(replayed["grad"].numpy()[recorded["pixel_index"]] - recorded["grad_first"]).max() < 1e-6


def test_final_pixels(recorded: dict[str, Any], replayed: dict[str, Any]) -> None:
    difference = np.abs(replayed["final"].numpy()[recorded["pixel_index"]] - recorded["final"])
    assert (difference < 1e-3).mean() >= 0.999
    assert difference.mean() < 1e-4
