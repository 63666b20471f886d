"""Quantization-aware distillation in a calibration: off by default, and the same for any number of workers."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.artifacts import load_quantized
from pipeline.config import from_dict
from pipeline.errors import ConfigError, ModelError, NonFiniteError
from pipeline.models import save_model
from pipeline.quantization import BitWidths, CalibrationConfig, calibrate
from pipeline.quantization.mixed_config import MixedConfig
from pipeline.quantization.plan import plan_calibration
from pipeline.quantization.qat_config import QatConfig
from pipeline.tracking.config import TrackingConfig
from pipeline.workers import WorkersConfig
from tests.conftest import HALF, make_tiny_model
from tests.quantization.test_run import make_config, read_ranges, write_masked, write_ten
from tests.tracking.reading import read_scalars

pytestmark = pytest.mark.usefixtures("ray_session")

W4A4 = BitWidths(weights=4, activations=4)
FEW = QatConfig(steps=3, batch_size=4)


@pytest.fixture(scope="module")
def sparse(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ten sparse images."""
    inversion = {"iterations": 4, "stop_steps": [2], "stop_fractions": [0.5]}
    return write_ten(tiny_folder, tmp_path_factory.mktemp("sparse"), inversion)


def run(teacher: Path, images: str, output: Path, **changes: Any) -> dict[str, Any]:
    changes = {"settings": [W4A4], "formats": ["onnx"], "max_images": 4, **changes}
    return calibrate(make_config(teacher, images, output, **changes))


def content(folder: Path) -> dict[str, bytes]:
    """Return the files that depend on the calibration alone, and not on how fast its artifacts are."""
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".onnx" or "ranges" in path.name
    }


def test_artifacts_are_the_same_bytes_on_any_number_of_workers_and_others_with_another_seed(
    tiny_folder: Path, sparse: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run(tiny_folder, sparse, tmp_path / "here", qat=FEW)
    printed = capsys.readouterr().err
    assert "qat: 10 images to read" in printed
    assert "qat w4a4: loss " in printed
    assert report["complete"] is True
    assert report["images"] == 4
    own = content(tmp_path / "here")
    assert own.keys() == {"ranges.json", "ranges_w4a4.json", "w4a4.onnx"}
    run(tiny_folder, sparse, tmp_path / "two", qat=FEW, workers=WorkersConfig(size=2, device="cpu"))
    assert content(tmp_path / "two") == own
    # Calibrated on all images, in whatever order, and trained in another.
    for seed in (0, 1):
        run(tiny_folder, sparse, tmp_path / f"seed-{seed}", qat=FEW, seed=seed, max_images=None)
    first, second = (content(tmp_path / f"seed-{seed}") for seed in (0, 1))
    assert first["ranges.json"] == second["ranges.json"]
    assert first["w4a4.onnx"] != second["w4a4.onnx"]


def test_what_is_written_says_what_was_trained(tiny_folder: Path, sparse: str, tmp_path: Path) -> None:
    mixed = MixedConfig(low=BitWidths(weights=3), weight_bits=5, held_back=4)
    changes = {"formats": ["pt2"], "mixed": mixed, "smoothing": "repq", "rounding": "gptq", "bias_correction": True}
    report = run(tiny_folder, sparse, tmp_path, qat=FEW, **changes)
    assert report["qat"].keys() == {"w4a4", "mixed"}
    for label, row in report["qat"].items():
        assert row["ranges"] == str(tmp_path / f"ranges_{label}.json")
        assert row["steps"] == 3
        assert min(row["first_loss"], row["last_loss"]) > 0
    assert [row["artifact"] for row in report["artifacts"]] == ["pt2", "pt2"]
    page = (tmp_path / "report.html").read_text()
    assert "Quantization-aware distillation" in page
    assert "loss by step: w4a4, mixed" in page
    seen = read_ranges(tmp_path)
    used = json.loads((tmp_path / "ranges_w4a4.json").read_text())
    assert used.keys() == seen.keys()
    assert used != seen
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert load_quantized(str(tmp_path / "mixed.pt2"))(images).isfinite().all()


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs the extra tensorboard")
def test_losses_of_steps_are_tracked(tiny_folder: Path, sparse: str, tmp_path: Path) -> None:
    tracking = TrackingConfig(tensorboard=str(tmp_path / "tb"), run_name="one")
    settings = [W4A4, BitWidths(weights=8, activations=8)]
    report = run(tiny_folder, sparse, tmp_path / "out", qat=FEW, tracking=tracking, settings=settings)
    found = read_scalars(str(tmp_path / "tb" / "one"), tmp_path)
    assert [step for step, _ in found["qat/w8a8/loss"]] == [1, 2, 3]
    steps, losses = zip(*found["qat/w4a4/loss"], strict=True)
    assert steps == (1, 2, 3)
    # A tenth of three steps is one.
    assert [losses[0], losses[-1]] == pytest.approx(
        [report["qat"]["w4a4"][name] for name in ("first_loss", "last_loss")], rel=1e-3
    )


def test_images_that_do_not_fit_in_memory_are_streamed(tiny_folder: Path, sparse: str, tmp_path: Path) -> None:
    qat = QatConfig(steps=4, batch_size=4, cache_gb=0, shuffle_buffer=8, augment=None)
    report = run(tiny_folder, sparse, tmp_path / "out", qat=qat)
    assert report["complete"] is True
    with pytest.raises(ConfigError, match=r"qat: the worker would hold 4 of 4 CPUs and leave none to read images"):
        run(
            tiny_folder,
            sparse,
            tmp_path / "full",
            qat=qat,
            workers=WorkersConfig(size=1, cpus_per_worker=4, device="cpu"),
        )
    assert not (tmp_path / "full").exists()


def test_a_model_that_reads_whole_images_is_trained_densely(whole_folder: Path, tmp_path: Path) -> None:
    images = write_masked(whole_folder, str(tmp_path / "images"))
    report = run(whole_folder, images, tmp_path / "out", mode="dense", qat=FEW, formats=["pt2"])
    assert report["complete"] is True


def test_a_training_that_diverges_leaves_no_output(tiny_folder: Path, sparse: str, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="qat loss of w4a4 is not finite at step 1"):
        run(tiny_folder, sparse, tmp_path / "out", qat=QatConfig(steps=3, lr=1e30))
    assert not (tmp_path / "out").exists()


def test_a_device_or_a_teacher_that_cannot_train_is_refused_before_the_calibration(
    tiny_folder: Path, sparse: str, tmp_path: Path
) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"workers\.device is 'cuda', and this process sees no CUDA device"):
            run(tiny_folder, sparse, tmp_path / "out", qat=FEW, workers=WorkersConfig(size=0, device="cuda"))
    model = make_tiny_model(num_classes=1)
    save_model(model, tmp_path / "one", class_names=["it"], mean=HALF, std=HALF)
    for reading in ({"qat": FEW}, {"sensitivity": 2}, {"mixed": MixedConfig(weight_bits=6)}):
        with pytest.raises(ModelError, match="has one logit"):
            run(tmp_path / "one", sparse, tmp_path / "out", allow_other_teacher=True, **reading)
    assert not (tmp_path / "out").exists()


def test_only_a_calibration_that_trains_has_it_in_its_identity(tiny_folder: Path, sparse: str, tmp_path: Path) -> None:
    def identity(**changes: Any) -> dict[str, Any]:
        return plan_calibration(make_config(tiny_folder, sparse, tmp_path / "out", **changes)).document["identity"]

    assert "qat" not in identity()
    assert identity(qat=QatConfig(augment=None))["qat"] == {"augment": None}
    # Streamed, images come in another order.
    assert identity(qat=QatConfig(augment=None, cache_gb=4.0))["qat"] == {"augment": None, "cache_gb": 4.0}
    assert identity(qat=QatConfig(augment=None, steps=9))["qat"] == {"augment": None, "steps": 9}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"lr": 0.0}, "lr must be positive, not 0"),
        ({"scale_lr": -1.0}, "scale_lr must not be negative, not -1"),
        ({"temperature": float("nan")}, "temperature must be finite, not nan"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QatConfig(**settings)


def test_bit_widths_to_train_are_some_of_those_that_are_made(tiny_folder: Path, sparse: str, tmp_path: Path) -> None:
    def trains(*bits: BitWidths) -> CalibrationConfig:
        qat = QatConfig(settings=list(bits), steps=2, batch_size=4)
        return make_config(tiny_folder, sparse, tmp_path / "out", settings=[W4A4, BitWidths()], qat=qat)

    with pytest.raises(ConfigError, match=r"qat\.settings has w2a8, which settings does not have"):
        trains(BitWidths(weights=2), W4A4)
    with pytest.raises(ConfigError, match=r"qat\.settings is empty"):
        trains()
    assert calibrate(trains(W4A4))["qat"].keys() == {"w4a4"}
    assert not (tmp_path / "out" / "ranges_w8a8.json").exists()


def test_a_config_file_names_it() -> None:
    config = from_dict(
        CalibrationConfig,
        {"teacher": {"name": "x"}, "images": "x", "output": "x", "qat": {"steps": 7, "augment": {"flip": 0.5}}},
    )
    assert config.qat is not None
    assert config.qat.augment is not None
    assert (config.qat.steps, config.qat.augment.flip) == (7, 0.5)
