from pathlib import Path

import pytest
import timm
from torch import nn

from pipeline.inversion import Inversion, InversionConfig
from pipeline.models import save_model
from pipeline.synthesis import Inverter, estimate
from pipeline.synthesis.estimate import probe, shard_seconds
from tests.conftest import HALF, TINY, enlarge_weights
from tests.synthesis.conftest import make_config


def make_eva(**changes: int) -> nn.Module:
    """A family whose blocks are not timm's plain ones."""
    return enlarge_weights(timm.create_model("eva02_tiny_patch14_336", **{**TINY, **changes}))  # type: ignore[arg-type]


def test_phases_of_the_published_schedule() -> None:
    found = InversionConfig().phases(196)
    assert found == [(50, 196), (50, 137), (100, 95), (100, 66), (3700, 46)]
    assert shard_seconds(found, [1.0, 0.5, 0.25, 0.1, 0.01]) == pytest.approx(147)


def test_dense_is_one_phase() -> None:
    assert InversionConfig(iterations=7, stop_steps=[], stop_fractions=[]).phases(16) == [(7, 16)]


def test_each_phase_is_timed(tiny_folder: Path) -> None:
    probed = probe(make_config(tiny_folder, "unused"), [0, 1, 2], actors_per_machine=1)
    assert len(probed.step_seconds) == 3
    assert all(0 < value < 5 for value in probed.step_seconds)


def test_memory_is_measured_and_predicted_and_shared(tiny_folder: Path) -> None:
    config = make_config(tiny_folder, "unused")
    alone, shared = (probe(config, [0, 1, 2], actors_per_machine=number) for number in (1, 4))
    assert alone.predicted_bytes == pytest.approx(alone.peak_bytes, rel=0.15)
    assert shared.device_bytes == alone.device_bytes // 4
    assert 3 < shared.largest_batch < alone.largest_batch / 3


def test_memory_of_a_family_that_is_not_counted_is_measured(tmp_path: Path) -> None:
    folder = tmp_path / "eva"
    save_model(make_eva(), folder, class_names=list("abcdefghij"), mean=HALF, std=HALF)
    probed = probe(make_config(folder, "unused"), [0, 1, 2], actors_per_machine=1)
    assert probed.predicted_bytes is None
    assert 0 < probed.peak_bytes < probed.device_bytes
    assert probed.largest_batch > 3


def test_what_fits_does_not_depend_on_how_the_shard_was_split(tmp_path: Path) -> None:
    folder = tmp_path / "eva"
    model = make_eva(embed_dim=192, depth=4)
    save_model(model, folder, class_names=list("abcdefghij"), mean=HALF, std=HALF)
    inversion = {"iterations": 6, "stop_steps": [3], "stop_fractions": [0.5]}
    largest = [
        probe(
            make_config(folder, "unused", inversion={**inversion, "micro_batch": micro_batch}),
            [0] * 16,
            actors_per_machine=1,
        ).largest_batch
        for micro_batch in (None, 2)
    ]
    assert 0.5 < largest[1] / largest[0] < 1.5


def test_a_formulas_phases_are_timed_with_its_own_numbers_of_patches(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rounding down, as lists of fractions do, would leave no patch.
    inversion = {"iterations": 20, "stop_formula": {"keep_ratio": 0.06, "by_step": 12, "num_stops": 4}}
    config = make_config(tiny_folder, "unused", inversion=inversion)
    assert [patches for _, patches in config.inversion.phases(16)] == [16, 8, 4, 2, 1]
    tried: list[InversionConfig] = []
    made = estimate._make_run

    def noting(inverter: Inverter, starts: list[int], inversion: InversionConfig) -> Inversion:
        tried.append(inversion)
        return made(inverter, starts, inversion)

    monkeypatch.setattr(estimate, "_make_run", noting)
    assert len(probe(config, [0, 1, 2], actors_per_machine=1).step_seconds) == 5
    assert [[patches for _, patches in short.phases(16)] for short in tried] == [[16, 8, 4, 2, 1]] * 2


def test_each_phase_of_a_rebirth_is_timed(tiny_folder: Path) -> None:
    inversion = {"iterations": 9, "rebirth": 4, "adaptive_end": {"hold_steps": 2}}
    config = make_config(tiny_folder, "unused", images_per_class=4, shard_size=8, inversion=inversion)
    assert (
        len(probe(config, [0] * 4 + [1] * 4, actors_per_machine=1).step_seconds)
        == len(config.inversion.phases(16))
        == 4
    )
