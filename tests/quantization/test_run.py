"""A whole calibration: from images of any origin to artifacts, ranges, scores; with nothing read twice."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from jobs.status import look
from pipeline import storage
from pipeline.config import from_dict
from pipeline.dataset import store, write_images
from pipeline.errors import DatasetError, ModelError
from pipeline.models import ModelConfig, save_model
from pipeline.quantization import BitWidths, CalibrationConfig, calibrate, range_error
from pipeline.quantization.batches import CalibrationBatch
from pipeline.quantization.distributed import Calibration, calibrate_ranges
from pipeline.quantization.mixed_config import MixedConfig
from pipeline.quantization.observe import RangeObserver
from pipeline.quantization.plan import check_settings, plan_calibration
from pipeline.synthesis import SynthesisConfig
from pipeline.synthesis.plan import plan_synthesis
from pipeline.synthesis.writer import PartWriter
from pipeline.workers import WorkersConfig
from tests.conftest import HALF, make_tiny_model
from tests.report.page_check import check_page

pytestmark = pytest.mark.usefixtures("ray_session")

NAMES = [f"class {letter}" for letter in "abcdefghij"]


def write_dataset(values: dict[str, Any]) -> None:
    """Write in this process what a synthesis of these settings writes."""
    plan = plan_synthesis(from_dict(SynthesisConfig, values))
    writer = PartWriter(plan.config, plan.digest)
    for shard in plan.shards:
        writer.write_shard(**shard)
    store.write_manifest(plan.config.output, plan.manifest)


def write_ten(teacher: Path, output: Path, inversion: dict[str, Any]) -> str:
    """Write ten images of a teacher, and return the folder's URI."""
    values = {
        "teacher": {"name": f"local-dir:{teacher}"},
        "output": str(output),
        "images_per_class": 1,
        "shard_size": 5,
        "inversion": inversion,
    }
    write_dataset(values)
    return str(output)


@pytest.fixture(scope="module")
def synthetic(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ten sparse images, as a synthesis writes them."""
    inversion = {"iterations": 6, "stop_steps": [2, 4], "stop_fractions": [0.3, 0.3]}
    return write_ten(tiny_folder, tmp_path_factory.mktemp("synthetic"), inversion)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("real") / "real.parquet")
    pixels = np.random.default_rng(0).integers(0, 256, (13, 32, 32, 3), np.uint8)
    write_images(uri, pixels, [number % 10 for number in range(13)], NAMES)
    return uri


def make_config(teacher: Path, images: str, output: Path | str, **changes: Any) -> CalibrationConfig:
    """Settings for one artifact, made in this process, with nothing scored and images timed one by one alone."""
    values = {"settings": [BitWidths()], "formats": ["pt2"], "workers": WorkersConfig(size=0), "latency_batch_size": 1}
    values |= changes
    return CalibrationConfig(
        teacher=ModelConfig(name=f"local-dir:{teacher}"), images=images, output=str(output), **values
    )


def ranges_of(config: CalibrationConfig) -> Calibration:
    """Return a calibration without its artifacts, each of which takes seconds."""
    return calibrate_ranges(plan_calibration(config))


def read_ranges(output: Path) -> dict[str, list[float]]:
    return json.loads((output / "ranges.json").read_text())


def test_artifacts_are_written_and_scored(tiny_folder: Path, synthetic: str, real: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    settings = [BitWidths(), BitWidths(weights=4)]
    # Equalized and smoothed, so that the artifacts are compared with the float model as it was loaded.
    changes = {"settings": settings, "formats": ["pt2", "onnx"], "labeled": real, "smoothing": "smooth_quant"}
    changes |= {"equalization": True, "latency_batch_size": [1, 32]}
    report = calibrate(make_config(tiny_folder, synthetic, output, **changes))

    own = ["config.json", "ranges.json", "report.html", "report.json"]
    assert sorted(path.name for path in output.iterdir()) == [
        *own,
        *("w4a8.onnx", "w4a8.pt2", "w8a8.onnx", "w8a8.pt2"),
    ]
    check_calibration_page(output, [*report["fp32"], *report["artifacts"]])
    assert json.loads((output / "report.json").read_text()) == report
    assert json.loads((output / "config.json").read_text())["config"]["images"] == synthetic
    assert report["complete"] is True
    assert (report["mode"], report["images"]) == ("sparse", 10)
    assert [row["artifact"] for row in report["fp32"]] == ["torch", "onnx"]
    rows = {(row["weights"], row["activations"], row["artifact"]): row for row in report["artifacts"]}
    assert set(rows) == {(w, 8, kind) for w in (8, 4) for kind in ("pt2", "onnx")}
    for row in [*rows.values(), *report["fp32"]]:
        assert row["images"] == 13
        assert 0 <= row["top1"] <= row["top5"] <= 100
        assert row["latency_ms"] > 0
        assert row["latency_ms_batch_32"] > 0
    # One image of 13 may be so near a border between classes that the float model changes its mind too.
    assert abs(rows[8, 8, "onnx"]["top1"] - rows[8, 8, "pt2"]["top1"]) <= 100 / 13 + 1e-6
    for (_, _, kind), row in rows.items():
        assert row["size_mb"] == pytest.approx(Path(row["uri"]).stat().st_size / 1e6, abs=1e-4)
        assert ("slower than fp32" in row["note"]) if kind == "pt2" else True
    assert "neither smaller nor faster" in rows[4, 8, "onnx"]["note"]
    assert "note" not in rows[8, 8, "onnx"]


def check_calibration_page(output: Path, rows: list[dict[str, Any]]) -> None:
    """The page has a line for each artifact, and a plot of scores and one of ranges."""
    page = check_page((output / "report.html").read_text())
    assert [text for text in page.texts if text in ("fp32", "W8A8", "W4A8")] == ["fp32"] * 2 + ["W8A8"] * 2 + [
        "W4A8"
    ] * 2
    assert [f"{row['agreement']:.2f}" in page.texts for row in rows] == [True] * 6
    assert rows[0]["agreement"] == 100
    assert page.tags.count("svg") == 2


def test_ranges_are_compared_with_those_of_real_images(
    tiny_folder: Path, synthetic: str, real: str, tmp_path: Path
) -> None:
    reference = make_config(tiny_folder, real, tmp_path / "real")
    calibrate(reference)
    report = calibrate(make_config(tiny_folder, synthetic, tmp_path / "out", reference=reference.output))
    ranges = [read_ranges(tmp_path / name) for name in ("out", "real")]
    assert report["range_error"] == pytest.approx(range_error(*ranges))
    page = check_page((tmp_path / "out" / "report.html").read_text())
    assert "Ranges against the reference" in page.texts
    assert f"{report['range_error']:.4f}" in page.texts
    # Those of one activation are left out, as where no image passes a ReLU.
    constant = next(iter(ranges[1]))
    storage.write_json(str(tmp_path / "real" / "ranges.json"), ranges[1] | {constant: [0.5, 0.5]})
    again = calibrate(make_config(tiny_folder, synthetic, tmp_path / "out", reference=reference.output))
    left = [{name: found[name] for name in found if name != constant} for found in ranges]
    assert again["range_error"] == pytest.approx(range_error(*left))
    table = check_page((tmp_path / "out" / "report.html").read_text()).texts
    assert f"of {len(ranges[1]) - 1} layers" in " ".join(table)
    with pytest.raises(DatasetError, match="has the placement 'linear', this calibration 'matmul'"):
        calibrate(make_config(tiny_folder, synthetic, tmp_path / "x", reference=reference.output, placement="matmul"))
    with pytest.raises(DatasetError, match="is not the output of a calibration"):
        calibrate(make_config(tiny_folder, synthetic, tmp_path / "x", reference=synthetic))
    document = storage.read_json(str(tmp_path / "real" / "config.json"))
    # As an earlier version named a point, which is found out before the images are read or, by a synthesis, made.
    renamed = {("stem:input" if name == constant else name): bounds for name, bounds in ranges[1].items()}
    storage.write_json(str(tmp_path / "real" / "ranges.json"), renamed)
    config = make_config(tiny_folder, synthetic, tmp_path / "x", reference=reference.output)
    again = f"make the reference again, with the settings under `config` in '{tmp_path}/real/config.json'"
    at_others = rf"at other points \(stem:input only there; {constant} only here\), as earlier versions did: {again}"
    with pytest.raises(DatasetError, match=at_others):
        plan_calibration(config)
    with pytest.raises(DatasetError, match=at_others):
        _ = check_settings(config).program
    calibrate(from_dict(CalibrationConfig, document["config"]))
    assert plan_calibration(config).reference == {name: tuple(bounds) for name, bounds in ranges[1].items()}
    document["identity"]["smoothing"] = "repq"
    storage.write_json(str(tmp_path / "real" / "config.json"), document)
    with pytest.raises(DatasetError, match="has ranges of a model that its smoothing has changed"):
        calibrate(make_config(tiny_folder, synthetic, tmp_path / "x", reference=reference.output))
    assert not (tmp_path / "x").exists()


def test_one_pass_serves_every_bit_width(
    tiny_folder: Path, real: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards: list[int] = []
    observe: Callable[..., list[str]] = RangeObserver.observe

    def counting(self: RangeObserver, batches: Iterable[CalibrationBatch], *count: Any) -> list[str]:
        def counted() -> Iterable[CalibrationBatch]:
            for batch in batches:
                forwards.append(len(batch.images))
                yield batch

        return observe(self, counted(), *count)

    monkeypatch.setattr(RangeObserver, "observe", counting)
    settings = [BitWidths(weights=8), BitWidths(weights=4, activations=4)]
    calibrate(make_config(tiny_folder, real, tmp_path, batch_size=5, settings=settings))
    assert forwards == [5, 5, 3]
    assert {"w8a8.pt2", "w4a4.pt2"} <= {path.name for path in tmp_path.iterdir()}
    alone = ranges_of(make_config(tiny_folder, real, tmp_path, batch_size=5)).ranges
    assert read_ranges(tmp_path) == {name: list(bounds) for name, bounds in alone.items()}


def test_sparse_and_dense_calibration_differ_on_sparse_images(
    tiny_folder: Path, synthetic: str, tmp_path: Path
) -> None:
    sparse = ranges_of(make_config(tiny_folder, synthetic, tmp_path))
    dense = ranges_of(make_config(tiny_folder, synthetic, tmp_path, mode="dense"))
    assert sparse.num_images == dense.num_images == 10
    assert range_error(sparse.ranges, dense.ranges) > 0.01


def test_real_images_and_folders_can_be_calibrated_on(tiny_folder: Path, tmp_path: Path) -> None:
    """Images may have any size: they go through the transform of the model's own config."""
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(3):
        pixels = generator.integers(0, 256, (50 + 10 * number, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    assert ranges_of(make_config(tiny_folder, str(folder), tmp_path / "out")).num_images == 3


def test_a_draw_of_images_is_reproduced(tiny_folder: Path, real: str, tmp_path: Path) -> None:
    drawn = [ranges_of(make_config(tiny_folder, real, tmp_path, max_images=4, seed=seed)) for seed in (0, 0, 1)]
    assert [calibration.num_images for calibration in drawn] == [4] * 3
    assert drawn[0].ranges == drawn[1].ranges != drawn[2].ranges


def test_an_output_takes_further_bit_widths_whose_report_names_the_earlier_ones_and_no_other_calibration(
    tiny_folder: Path, real: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrate(make_config(tiny_folder, real, tmp_path))
    calibrate(make_config(tiny_folder, real, tmp_path, settings=[BitWidths(weights=6, activations=6)]))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {"w8a8.pt2", "w6a6.pt2"} <= before.keys()
    assert f"w8a8.pt2 of an earlier run stay in {str(tmp_path)!r}" in capsys.readouterr().err
    assert json.loads(before["report.json"])["left"] == ["w8a8.pt2"]
    assert "of an earlier run, not measured anew" in before["report.html"].decode()
    with pytest.raises(
        DatasetError, match="holds a calibration made with other settings: placement is 'linear' there, 'matmul' here"
    ):
        calibrate(make_config(tiny_folder, real, tmp_path, placement="matmul"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_output_of_the_time_before_settings_were_renamed_takes_further_bit_widths(
    tiny_folder: Path, real: str, tmp_path: Path
) -> None:
    calibrate(make_config(tiny_folder, real, tmp_path, labeled=real))
    document = json.loads((tmp_path / "config.json").read_text())
    settings = document["config"]
    workers = settings.pop("workers")
    # Settings that are new since then.
    del workers["min_size"]
    settings["num_workers"] = workers.pop("size")
    settings |= workers | {"labelled": settings.pop("labeled"), "labelled_split": settings.pop("labeled_split")}
    (tmp_path / "config.json").write_text(json.dumps(document))
    calibrate(from_dict(CalibrationConfig, settings | {"settings": [{"weights": 6}]}))
    assert {"w8a8.pt2", "w6a8.pt2"} <= {path.name for path in tmp_path.iterdir()}


def test_a_run_that_is_killed_while_it_replaces_files_leaves_no_report_of_an_earlier_one(
    tiny_folder: Path, real: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate(make_config(tiny_folder, real, tmp_path))
    assert look(str(tmp_path))["complete"] is True

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "upload_folder", stop)
    with pytest.raises(KeyboardInterrupt):
        calibrate(make_config(tiny_folder, real, tmp_path, settings=[BitWidths(weights=6, activations=6)]))
    assert json.loads((tmp_path / "config.json").read_text())["config"]["settings"][0]["weights"] == 6
    found = look(str(tmp_path))
    assert (found["complete"], found["missing"]) == (False, ["report.json"])


def test_a_calibration_without_images_that_failed_is_run_again_without_them(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {
        "teacher": {"name": f"local-dir:{tiny_folder}"},
        "output": str(tmp_path / "images"),
        "images_per_class": 1,
        "shard_size": 5,
        "inversion": {"iterations": 2, "stop_steps": [], "stop_fractions": []},
    }
    write_dataset(values)
    (lost, _) = sorted((tmp_path / "images" / "data").glob("*.parquet"))
    lost.unlink()
    store.write_failure(str(tmp_path / "images"), 0, {"error": "OSError", "reason": "the disk was full"})
    changes = {"allow_incomplete": True}
    report = calibrate(make_config(tiny_folder, str(tmp_path / "images"), tmp_path / "out", **changes))
    path = tmp_path / "synthesis.yaml"
    path.write_text(yaml.safe_dump(values))
    capsys.readouterr()
    again = calibrate(make_config(tiny_folder, str(path), tmp_path / "out", **changes))
    assert (again["images"], report["images"]) == (5, 5)
    assert "1 shards of '" in (printed := capsys.readouterr().err)
    assert "was begun without them: give another output to have them tried" in printed
    assert not lost.exists()


def test_images_of_another_teacher_are_taken_if_that_is_meant(synthetic: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    save_model(make_tiny_model(seed=1), other, class_names=NAMES, mean=HALF, std=HALF)
    with pytest.raises(DatasetError, match="allow_other_teacher accepts them"):
        calibrate(make_config(other, synthetic, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert ranges_of(make_config(other, synthetic, tmp_path / "out", allow_other_teacher=True)).num_images == 10


def test_any_location_can_be_written_to_whatever_batch_is_too_large_to_time(
    tiny_folder: Path, real: str, capsys: pytest.CaptureFixture[str]
) -> None:
    too_many = 2**31 - 1
    changes = {"labeled": real, "latency_batch_size": [1, too_many]}
    report = calibrate(make_config(tiny_folder, real, "memory://calibration/out", **changes))
    told = capsys.readouterr().err
    for name, row in (("fp32 as torch", report["fp32"][0]), ("w8a8.pt2", report["artifacts"][0])):
        assert [column for column in row if "latency" in column] == ["latency_ms"]
        assert f"{name}: latency at batch {too_many} is not measured" in told
    assert report["complete"] is True
    page = check_page(storage.read_bytes("memory://calibration/out/report.html").decode())
    assert "ms per image, batch 1" in page.texts
    assert report["artifacts"][0]["uri"] == "memory://calibration/out/w8a8.pt2"
    assert report["artifacts"][0]["images"] == 13


def write_masked(teacher: Path, output: str) -> str:
    """Five sparse images of a teacher that reads whole ones."""
    values = {
        "teacher": {"name": f"local-dir:{teacher}"},
        "output": output,
        "images_per_class": 1,
        "classes": [0, 1, 2, 3, 4],
        "inversion": {"iterations": 6, "stop_steps": [2], "stop_fractions": [0.5], "mask_only": True},
    }
    write_dataset(values)
    return output


def test_a_model_that_reads_whole_images_is_calibrated_densely(whole_folder: Path, tmp_path: Path) -> None:
    images = write_masked(whole_folder, str(tmp_path / "images"))
    with pytest.raises(
        ModelError, match=r"SwinTransformer cannot be calibrated on only the kept patches: .*mode dense"
    ):
        calibrate(make_config(whole_folder, images, tmp_path / "sparse"))
    report = calibrate(make_config(whole_folder, images, tmp_path / "dense", mode="dense", labeled=images))
    assert (report["mode"], report["images"]) == ("dense", 5)
    assert [row["artifact"] for row in report["artifacts"]] == ["pt2"]
    assert report["artifacts"][0]["top1"] == pytest.approx(report["fp32"][0]["top1"], abs=20)


def test_widths_by_layer_are_chosen_on_images_that_are_not_calibrated_on(
    tiny_folder: Path, real: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = MixedConfig(low=BitWidths(weights=2, activations=4), weight_bits=5, held_back=4)
    changes = {"mixed": mixed, "observer": "mse", "settings": [BitWidths(weights=4)], "labeled": real}
    # Each artifact is compared with a graph of the same refined weights.
    changes |= {"rounding": "gptq", "bias_correction": True}
    report = calibrate(make_config(tiny_folder, real, tmp_path, **changes))
    names = ["config.json", "mixed.pt2", "ranges.json", "ranges_a4.json", "ranges_a8.json", "report.json"]
    names += [f"sensitivity.{kind}" for kind in ("json", "md", "png")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "report.html", "w4a8.pt2"])
    page = (tmp_path / "report.html").read_text()
    assert "Sensitivity of the layers" in page
    assert "W2A4, each layer alone" in page
    # A quarter at most.
    assert (report["images"], report["observer"]) == (13 - 3, "mse")
    row = report["artifacts"][1]
    assert 4 < row["weights"] <= 5
    assert row["activations"] == [4, 8]
    assert set(row["layers"].values()) == {"w2a4", "w8a8"}
    assert row["uri"].endswith("mixed.pt2")
    assert row["images"] == 13
    table = json.loads((tmp_path / "sensitivity.json").read_text())
    assert table["images"] == 3
    assert {layer["layer"] for layer in table["layers"]["w2a4"]} == set(row["layers"])
    assert "| blocks.0.attn.qkv | 3072 |" in (tmp_path / "sensitivity.md").read_text()
    told = capsys.readouterr().err
    assert "divergence from float, w2a4:" in told
    assert "mixed.held_back is 4: of 13 images a quarter is held back, 3" in told
