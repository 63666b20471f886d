"""Quantization-aware distillation in a calibration: off by default, and as good on any number of workers."""

import json
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from jobs.status import look
from pipeline import storage
from pipeline.artifacts import load_quantized, pt2
from pipeline.config import from_dict
from pipeline.dataset.collection import find_images
from pipeline.distillation.images import read_into_memory
from pipeline.distillation.opening import open_images
from pipeline.distillation.order import Share
from pipeline.distillation.state import TrainingState
from pipeline.errors import ConfigError, DatasetError, FormError, ModelError, NonFiniteError, PipelineError
from pipeline.models import ModelConfig, load_model, save_model
from pipeline.outputs import check_same_settings
from pipeline.outputs.names import QAT_CHECKPOINTS
from pipeline.quantization import BitWidths, CalibrationConfig, calibrate
from pipeline.quantization.mixed_config import MixedConfig
from pipeline.quantization.plan import plan_calibration
from pipeline.quantization.qat_config import QatConfig
from pipeline.quantization.qat_loop import QatTrainer
from pipeline.quantization.reading import read_patch_counts
from pipeline.tracking.config import TrackingConfig
from pipeline.workers import WorkersConfig
from tests.conftest import HALF, make_tiny_model
from tests.dataset.test_conversion import write_kept
from tests.quantization.test_run import make_config, read_ranges, write_masked, write_ten
from tests.report.page_check import check_page
from tests.tracking.reading import read_scalars

pytestmark = pytest.mark.usefixtures("ray_session")

W4A4 = BitWidths(weights=4, activations=4)
FEW = QatConfig(steps=3, batch_size=4)
# Equal bytes are promised of it; a `.pt2` takes half the time to write.
ONNX: dict[str, Any] = {"formats": ["onnx"]}
# What is trained is kept, whether or not it helps.
TRAINED = replace(FEW, held_back=0)


@pytest.fixture(scope="module")
def sparse(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ten sparse images."""
    inversion = {"iterations": 4, "stop_steps": [2], "stop_fractions": [0.5]}
    return write_ten(tiny_folder, tmp_path_factory.mktemp("sparse"), inversion)


def run(teacher: Path, images: str, output: Path, **changes: Any) -> dict[str, Any]:
    changes = {"settings": [W4A4], "formats": ["pt2"], "max_images": 4, **changes}
    return calibrate(make_config(teacher, images, output, **changes))


def content(folder: Path) -> dict[str, bytes]:
    """Return the files that depend on the calibration alone, and not on how fast its artifacts are."""
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".onnx" or "ranges" in path.name
    }


def test_a_worker_makes_the_same_bytes_as_this_process_and_another_seed_makes_others(
    tiny_folder: Path, sparse: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run(tiny_folder, sparse, tmp_path / "here", qat=TRAINED, **ONNX)
    printed = capsys.readouterr().err
    assert "qat: 10 images to read" in printed
    assert "qat w4a4: loss " in printed
    assert report["qat"]["w4a4"].keys() == {"steps", "first_loss", "last_loss", "ranges"}
    assert report["complete"] is True
    assert report["images"] == 4
    own = content(tmp_path / "here")
    assert own.keys() == {"ranges.json", "ranges_w4a4.json", "w4a4.onnx"}
    run(tiny_folder, sparse, tmp_path / "one", qat=TRAINED, workers=WorkersConfig(size=1, device="cpu"), **ONNX)
    assert content(tmp_path / "one") == own
    # Calibrated on all images, in whatever order, and trained in another.
    for seed in (0, 1):
        run(tiny_folder, sparse, tmp_path / f"seed-{seed}", qat=TRAINED, seed=seed, max_images=None, **ONNX)
    first, second = (content(tmp_path / f"seed-{seed}") for seed in (0, 1))
    assert first["ranges.json"] == second["ranges.json"]
    assert first["w4a4.onnx"] != second["w4a4.onnx"]


def test_several_workers_descend_the_loss_of_one(tiny_folder: Path, sparse: str, tmp_path: Path) -> None:
    # Batches of three: one worker has more to read than the other, which raises if they end with different weights.
    # Scales that move by half of themselves, since two workers' sums round otherwise than one's.
    qat = replace(TRAINED, batch_size=3, scale_lr=0.1)
    one = run(tiny_folder, sparse, tmp_path / "one", qat=qat)["qat"]["w4a4"]
    workers = WorkersConfig(size=2, device="cpu")
    two = run(tiny_folder, sparse, tmp_path / "two", qat=qat, workers=workers)["qat"]["w4a4"]
    figures = ("first_loss", "last_loss")
    assert [two[name] for name in figures] == pytest.approx([one[name] for name in figures], rel=1e-2)
    ranges = [json.loads((tmp_path / name / "ranges_w4a4.json").read_text()) for name in ("one", "two")]
    calibrated = read_ranges(tmp_path / "one")
    moved = [abs(bounds[1] / calibrated[point][1] - 1) for point, bounds in ranges[0].items()]
    assert max(moved) > 0.1
    for point, bounds in ranges[0].items():
        assert ranges[1][point] == pytest.approx(bounds, rel=1e-2)


def test_where_training_does_not_help_the_calibrated_model_is_kept(
    tiny_folder: Path, sparse: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tiny_folder, sparse, tmp_path / "calibrated", **ONNX)
    # Far too fast.
    report = run(tiny_folder, sparse, tmp_path / "out", qat=replace(FEW, lr=0.3, steps=2), **ONNX)["qat"]["w4a4"]
    printed = capsys.readouterr().err
    # Of ten, two are held back; four are read at each of two steps.
    assert "qat: 8 images to read" in printed
    assert re.search(
        r"qat w4a4: loss \S+ at first, \S+ at the end; divergence from the teacher on 2 held-back images \S+ before "
        r"and \S+ after step 2: keeping the calibrated model \(qat\.min_gain 0\.5\)",
        printed,
    )
    assert report["divergence"] > report["divergence_before"]
    assert (report["kept"], report["held_back"], report["best_step"]) == ("calibrated", 2, 2)
    names = [tmp_path / name / "w4a4.onnx" for name in ("calibrated", "out")]
    assert names[0].read_bytes() == names[1].read_bytes()
    used = json.loads((tmp_path / "out" / "ranges_w4a4.json").read_text())
    assert used == read_ranges(tmp_path / "out")
    page = check_page((tmp_path / "out" / "report.html").read_text())
    shown = {f"{report[name]:.4g}" for name in ("divergence_before", "divergence", "disagreement")}
    assert shown | {"kept", "calibrated"} <= set(page.texts)


def test_an_interrupted_calibration_goes_on_from_the_last_checkpoint_to_the_same_bytes(
    tiny_folder: Path,
    sparse: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = {"settings": [W4A4, BitWidths(weights=3)], "qat": replace(TRAINED, checkpoint_minutes=1e-9), **ONNX}
    run(tiny_folder, sparse, tmp_path / "untouched", **changes)
    step = QatTrainer._step

    def stop_in_the_second_variant(self: QatTrainer, batch: Any, state: TrainingState) -> bool:
        if self.label == "w3a8" and state.steps == 2:
            raise KeyboardInterrupt
        return step(self, batch, state)

    monkeypatch.setattr(QatTrainer, "_step", stop_in_the_second_variant)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_folder, sparse, tmp_path / "out", **changes)
    written = [str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out" / QAT_CHECKPOINTS).rglob("*.pt")]
    digest = json.loads((tmp_path / "out" / "config.json").read_text())["digest"][:8]
    # The first variant is done.
    assert sorted(written) == [
        f"{QAT_CHECKPOINTS}/w3a8-{digest}/checkpoints/epoch-00000-step-00000002.pt",
        f"{QAT_CHECKPOINTS}/w4a4-{digest}/checkpoints/epoch-00001.pt",
    ]
    monkeypatch.setattr(QatTrainer, "_step", step)
    capsys.readouterr()
    run(tiny_folder, sparse, tmp_path / "out", **changes)
    printed = capsys.readouterr().err
    assert "qat: there are checkpoints, 17 of 20 images were read" in printed
    assert "qat: 3 images to read" in printed
    assert content(tmp_path / "out") == content(tmp_path / "untouched")
    assert not (tmp_path / "out" / QAT_CHECKPOINTS).exists()


def stop_at(monkeypatch: pytest.MonkeyPatch, label: str, steps: int, error: BaseException) -> None:
    """Have the training of a variant end with an error after some steps."""
    step = QatTrainer._step

    def stop(self: QatTrainer, batch: Any, state: TrainingState) -> bool:
        if self.label == label and state.steps == steps:
            raise error
        return step(self, batch, state)

    monkeypatch.setattr(QatTrainer, "_step", stop)


def make_no_artifact(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Have every file of a quantized model fail with an error."""

    def save_nothing(*_: Any, **__: Any) -> list[Path]:
        raise error

    monkeypatch.setattr(pt2, "FORMAT", replace(pt2.FORMAT, save=save_nothing))


def trained_so_far(output: Path) -> list[str]:
    """Return the labels of variants that have checkpoints."""
    return sorted({path.parts[-3].partition("-")[0] for path in (output / QAT_CHECKPOINTS).rglob("*.pt")})


def test_other_settings_begin_anew_where_a_training_was_stopped(
    tiny_folder: Path,
    sparse: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        stop_at(patch, "w4a4", 2, KeyboardInterrupt())
        run(tiny_folder, sparse, out, qat=replace(TRAINED, checkpoint_minutes=1e-9))
    assert trained_so_far(out) == ["w4a4"]
    assert look(str(out))["missing"] == ["ranges.json", "report.json"]
    other = replace(TRAINED, lr=1e-3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        stop_at(patch, "w4a4", 1, KeyboardInterrupt())
        capsys.readouterr()
        run(tiny_folder, sparse, out, qat=replace(other, checkpoint_minutes=1e-9))
    told = capsys.readouterr().err
    assert f"a training of other settings was stopped in '{out}', and this run begins: qat.lr is None there" in told
    assert f"qat: checkpoints of other settings in '{out}' stay until this run is done" in told
    assert len(trained_so_far(out)) == 1
    assert len(list((out / QAT_CHECKPOINTS).iterdir())) == 2
    (out / QAT_CHECKPOINTS / "notes").mkdir()
    # Back to the first settings: their training goes on.
    assert run(tiny_folder, sparse, out, qat=TRAINED)["complete"] is True
    told = capsys.readouterr().err
    assert "qat: there are checkpoints, " in told
    assert f"qat: removing checkpoints of other settings from '{out}': w4a4-" in told
    assert [path.name for path in (out / QAT_CHECKPOINTS).iterdir()] == ["notes"]


def test_an_artifact_that_can_never_be_made_keeps_no_checkpoints_and_is_not_trained_for_again(
    tiny_folder: Path,
    sparse: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    make_no_artifact(monkeypatch, FormError("w4a4.pt2: it lacks an operator"))
    report = run(tiny_folder, sparse, out, qat=TRAINED)
    assert (report["complete"], [row["may_come"] for row in report["failed"]]) == (False, [False])
    assert not (out / QAT_CHECKPOINTS).exists()
    stop_at(monkeypatch, "w4a4", 0, AssertionError("it is trained again"))
    capsys.readouterr()
    assert run(tiny_folder, sparse, out, qat=TRAINED) == report
    assert "is done with these settings, but for what cannot be made (w4a4.pt2)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "kept"),
    [(NonFiniteError(2, "qat loss of w3a8"), ["w4a4"]), (ConfigError("out of memory"), ["w3a8", "w4a4"])],
)
def test_a_variant_that_fails_leaves_the_checkpoints_of_others(
    error: PipelineError,
    kept: list[str],
    tiny_folder: Path,
    sparse: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = {"settings": [W4A4, BitWidths(weights=3)], "qat": replace(TRAINED, checkpoint_minutes=1e-9)}
    stop_at(monkeypatch, "w3a8", 2, error)
    with pytest.raises(type(error)):
        run(tiny_folder, sparse, tmp_path / "out", **changes)
    assert trained_so_far(tmp_path / "out") == kept


def test_a_finished_training_is_not_done_again_unless_a_file_of_it_is_gone(
    tiny_folder: Path,
    sparse: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    report = run(tiny_folder, sparse, out, qat=TRAINED)
    stop_at(monkeypatch, "w4a4", 0, KeyboardInterrupt())
    # As a run that was killed at its end leaves them.
    storage.write_bytes(str(out / QAT_CHECKPOINTS / "w4a4-89abcdef" / "checkpoints" / "epoch-00001.pt"), b"content")
    capsys.readouterr()
    assert run(tiny_folder, sparse, out, qat=TRAINED) == report
    again = f"calibrate: '{out}' is done with these settings; to train and measure again, delete '{out}/report.json'"
    printed = capsys.readouterr().err
    assert again in printed
    assert f"qat: removing checkpoints of other settings from '{out}': w4a4-89abcdef" in printed
    assert "stay until this run is done" not in printed
    # Moved, and asked for with other settings that decide nothing.
    moved = out.rename(tmp_path / "moved")
    elsewhere = run(tiny_folder, sparse, moved, qat=replace(TRAINED, cache_gb=0), score_batch_size=1)
    assert elsewhere == json.loads(json.dumps(report).replace(str(out), str(moved)))
    with pytest.raises(KeyboardInterrupt):
        run(tiny_folder, sparse, moved, qat=TRAINED, latency_batch_size=2)
    (moved / "w4a4.pt2").unlink()
    with pytest.raises(KeyboardInterrupt):
        run(tiny_folder, sparse, moved, qat=TRAINED)
    assert f"'{moved}/w4a4.pt2' of a finished calibration is missing: it is trained" in capsys.readouterr().err


def test_an_artifact_that_could_not_be_made_is_made_later_without_training_again(
    tiny_folder: Path,
    sparse: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        # As of a compiler that was killed: nobody knows that it would be again.
        make_no_artifact(patch, ModelError("the model cannot be compiled"))
        report = run(tiny_folder, sparse, out, qat=TRAINED)
    assert (report["complete"], [row["may_come"] for row in report["failed"]]) == (False, [True])
    told = "qat: checkpoints are kept, so that w4a4.pt2 can be made without training again"
    assert told in capsys.readouterr().err
    stop_at(monkeypatch, "w4a4", 0, AssertionError("it is trained again"))
    assert run(tiny_folder, sparse, out, qat=TRAINED)["complete"] is True
    assert (out / "w4a4.pt2").exists()
    assert not (out / QAT_CHECKPOINTS).exists()


def test_images_that_are_held_back_are_streamed_to_no_worker(tiny_folder: Path, sparse: str) -> None:
    images, loaded = find_images(sparse), load_model(ModelConfig(name=f"local-dir:{tiny_folder}"))
    names = {image_id for image_id, _ in read_patch_counts(images, loaded, dense=True)}
    left_out = set(sorted(names)[3:6])
    for where in (images, [ray.put(read_into_memory(images, loaded, labels=False))]):
        opened = open_images(where, loaded, Share(batch_size=4, seed=0), labels=False, left_out=left_out)
        assert opened.num_images == 7
        read = [name for batch in opened.batches(0, torch.device("cpu")) for name in batch.image_ids]
        assert len(read) == 7
        assert set(read) == names - left_out


def test_what_is_written_says_what_was_trained(tiny_folder: Path, sparse: str, tmp_path: Path) -> None:
    mixed = MixedConfig(low=BitWidths(weights=3), weight_bits=5, held_back=2)
    changes = {"formats": ["pt2"], "mixed": mixed, "smoothing": "repq", "rounding": "gptq", "bias_correction": True}
    report = run(tiny_folder, sparse, tmp_path, qat=TRAINED, **changes)
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
    held = r"1 workers would hold 4 of 4 CPUs and leave none to read images: take fewer, or raise qat\.cache_gb \(0\)"
    workers = WorkersConfig(size=1, cpus_per_worker=4, device="cpu")
    with pytest.raises(ConfigError, match=held):
        run(tiny_folder, sparse, tmp_path / "full", qat=qat, workers=workers)
    assert not (tmp_path / "full").exists()


def test_a_model_that_reads_whole_images_is_trained_densely(whole_folder: Path, tmp_path: Path) -> None:
    images = write_masked(whole_folder, str(tmp_path / "images"))
    report = run(whole_folder, images, tmp_path / "out", mode="dense", qat=FEW, formats=["pt2"])
    assert report["complete"] is True


def test_patches_of_another_grid_do_not_matter_where_whole_images_are_read(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    images = write_kept(tmp_path / "images", [[3], [2, 16], [20], [0]])
    for cache_gb in (0, 1):
        qat = replace(TRAINED, steps=1, cache_gb=cache_gb)
        output = tmp_path / f"out-{cache_gb}"
        assert run(tiny_folder, images, output, mode="dense", qat=qat, formats=["pt2"])["complete"] is True


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
    plain = {"augment": None, "settings": ["w8a8"]}
    assert identity(qat=QatConfig(augment=None))["qat"] == plain
    assert identity(qat=QatConfig(augment=None, steps=9))["qat"] == plain | {"steps": 9}
    # Which model is kept; not how often the training is saved, nor what fits in memory.
    assert identity(qat=QatConfig(augment=None, held_back=9))["qat"] == plain | {"held_back": 9}
    assert identity(qat=QatConfig(augment=None, checkpoint_minutes=1.0, cache_gb=4.0))["qat"] == plain


def test_widths_are_added_to_an_output_only_where_they_are_not_trained(
    tiny_folder: Path, sparse: str, tmp_path: Path
) -> None:
    def document(*widths: BitWidths, named: list[BitWidths] | None = None, **changes: Any) -> dict[str, Any]:
        qat = QatConfig(settings=named)
        return plan_calibration(
            make_config(tiny_folder, sparse, tmp_path / "out", settings=list(widths), qat=qat, **changes)
        ).document

    one = document(W4A4)
    with pytest.raises(DatasetError, match=r"qat\.settings is \['w4a4'\] there, \['w4a4', 'w8a8'\] here"):
        check_same_settings("out", "calibrate", one, document(W4A4, BitWidths()))
    assert document(W4A4, BitWidths(), named=[W4A4])["digest"] == one["digest"]
    mixed = MixedConfig(weight_bits=6, held_back=2)
    assert document(W4A4, mixed=mixed)["identity"]["qat"]["settings"] == ["mixed", "w4a4"]
    assert document(W4A4, mixed=mixed, named=[W4A4])["identity"]["qat"]["settings"] == ["w4a4"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "qat.steps must be at least 1, not 0"),
        ({"batch_size": 0}, "qat.batch_size must be at least 1, not 0"),
        ({"lr": 0.0}, "qat.lr must be positive, not 0"),
        ({"scale_lr": -1.0}, "qat.scale_lr must not be negative, not -1"),
        ({"held_back": -1}, "qat.held_back must not be negative, not -1"),
        # No training takes all of a divergence away.
        ({"min_gain": 1.0}, r"qat.min_gain must lie in \[0, 1\), not 1\.0"),
        ({"score_every": 0}, "qat.score_every must be at least 1, not 0"),
        ({"checkpoint_minutes": 0.0}, "qat.checkpoint_minutes must be positive, not 0"),
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
