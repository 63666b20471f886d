"""A new format takes a file and a name in the table, as docs/extending.md says: its worked example is run here."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from jobs import status
from pipeline import artifacts, checks
from pipeline.artifacts import formats
from pipeline.artifacts.facts import Facts
from pipeline.artifacts.formats import FORMATS, Format, FormatName, format_named, format_of, load_quantized, save
from pipeline.errors import CheckpointError, ConfigError
from pipeline.evaluation import open_artifact
from pipeline.models import ModelConfig, load_model
from pipeline.quantization.artifact_files import make_artifacts, make_baselines
from pipeline.quantization.batches import CalibrationBatch
from pipeline.quantization.bit_widths import BitWidths, Placement
from pipeline.quantization.config import CalibrationConfig
from pipeline.quantization.observe import RangeObserver
from pipeline.quantization.variants import Values, Variant
from tests.extending import PAGE, ROOT, python_blocks

Programs = Callable[[Placement], ExportedProgram]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Add the format of the page as it says, and give its name."""
    (name,) = re.findall(r"would be `pipeline/artifacts/(\w+)\.py`", PAGE)
    module, line = python_blocks("An artifact format")[:2]
    assert line.replace(f', "{name}"', "") in (ROOT / "pipeline" / "artifacts" / "formats.py").read_text()
    (tmp_path / f"{name}.py").write_text(module)
    monkeypatch.setattr(artifacts, "__path__", [*artifacts.__path__, str(tmp_path)])
    names: dict[str, object] = {"Literal": Literal}
    exec(line, names)
    monkeypatch.setattr(formats, "FORMATS", get_args(names["FormatName"]))
    # The config lists the names in its type.
    monkeypatch.setitem(CalibrationConfig.__annotations__, "formats", list[names["FormatName"]])  # pyright: ignore
    checks._hints.cache_clear()
    yield name
    checks._hints.cache_clear()
    sys.modules.pop(f"pipeline.artifacts.{name}", None)


def test_a_format_is_a_file_and_a_name(
    example: str,
    tiny_folder: Path,
    model: nn.Module,
    programs: Programs,
    ragged: list[CalibrationBatch],
    tmp_path: Path,
) -> None:
    loaded = load_model(ModelConfig(name=f"local-dir:{tiny_folder}"))
    config = CalibrationConfig(
        teacher=ModelConfig(name="x"),
        images="x",
        output=str(tmp_path / "out"),
        formats=[example],  # pyright: ignore[reportArgumentType]
    )
    observer = RangeObserver(model, "linear")
    observer.observe(ragged)
    folder, images = tmp_path / "out", torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    folder.mkdir()
    variants = [(Variant("w8a8", BitWidths()), Values(observer.ranges()))]
    made = make_artifacts(config, loaded, programs("linear"), variants, images, folder)
    (artifact,) = made.artifacts
    assert (made.refused, artifact.format) == ([], example)
    assert [path.name for path in folder.iterdir()] == [f"w8a8.{example}"]
    baselines, missing = make_baselines(config, loaded, programs("linear"), tmp_path)
    assert ([baseline.format for baseline in baselines], missing) == ([example], [])
    uri = str(folder / f"w8a8.{example}")
    assert load_quantized(uri).facts == Facts.of(loaded)
    predict = open_artifact(uri, ModelConfig(name="x"), loaded)
    torch.testing.assert_close(predict(images), artifact.predict(images))
    bad = tmp_path / f"bad.{example}"
    bad.write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match=r"bad\.\w+' is not a model in ONNX Runtime's format"):
        load_quantized(str(bad))
    for name in ("config.json", "ranges.json"):
        (folder / name).write_text(json.dumps({"job": "calibrate"}))
    assert status.status(status.StatusConfig(uri=str(folder)))["artifacts"] == [f"w8a8.{example}"]


def test_every_name_of_the_table_is_a_format() -> None:
    assert all(isinstance(format_named(name), Format) for name in FORMATS)


def test_the_end_of_a_name_states_the_format(programs: Programs, tmp_path: Path) -> None:
    names = ("a.pt2", "s3://b/A.ONNX", "A.aoti.PT2", "aoti.pt2", "a.pt", "a.onnx.data", "onnx")
    assert [format_of(name) for name in names] == ["pt2", "onnx", "aoti", "pt2", None, None, None]
    known = r"\.pt2, \.onnx, \.aoti\.pt2"
    with pytest.raises(CheckpointError, match=rf"'x\.tflite' is no artifact: it ends with none of {known}"):
        load_quantized("x.tflite")
    with pytest.raises(CheckpointError, match=r"x\.tflite' is no artifact"):
        save(programs("linear"), tmp_path / "x.tflite", Facts())


def test_the_table_is_read_without_what_its_formats_need() -> None:
    code = "import sys, pipeline.artifacts.formats; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_nothing_is_printed_when_a_format_is_imported() -> None:
    """torchao's way to register an Enum is deprecated, which torch logged for everyone who opened a file."""
    code = "from pipeline.artifacts.formats import format_named; format_named('pt2')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_package_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for act in (format_named("onnx").check, lambda: load_quantized(str(tmp_path / "x.onnx"))):
        with pytest.raises(ConfigError, match=r"ONNX files need the extra 'onnx': .*onnxruntime"):
            act()
    format_named("pt2").check()


def test_the_examples_of_the_page_run(files: Callable[[BitWidths, FormatName], Path]) -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "artifacts.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    for example in examples:
        assert example.count("runs/calibrated/w8a8.onnx") == 1
        exec(example.replace("runs/calibrated/w8a8.onnx", str(files(BitWidths(), "onnx"))), names)
    assert len(examples) == 2
    assert len(names["compiled"].outputs) == 1
    assert names["logits"].shape == (2, 10)
    assert set(names["names"]) <= set(names["model"].facts.class_names)
