"""AOTInductor packages: compiled once here, compared with the `.pt2` file, and never opened unless it is allowed."""

import io
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch
from torch.export import ExportedProgram

from pipeline.artifacts import aoti, load_quantized
from pipeline.artifacts.aoti import check_aoti, has_exact_integers, list_instruction_sets, open_aoti
from pipeline.artifacts.facts import Facts
from pipeline.artifacts.formats import FormatName
from pipeline.artifacts.opened import Opened
from pipeline.distillation.batches import DistillationBatch
from pipeline.errors import CheckpointError, ConfigError, FormError, ModelError
from pipeline.evaluation import open_artifact
from pipeline.models import LoadedModel, ModelConfig, load_model
from pipeline.quantization import BitWidths
from pipeline.quantization.agreement import relative_error
from pipeline.quantization.artifact_files import Artifact, make_artifacts
from pipeline.quantization.batches import CalibrationBatch
from pipeline.quantization.bit_widths import Placement
from pipeline.quantization.config import CalibrationConfig
from pipeline.quantization.learned import LearnedGraph
from pipeline.quantization.observe import RangeObserver
from pipeline.quantization.variants import Values, Variant

# The tests share one compilation, so that pytest-xdist keeps them in one process, where the other artifacts are made.
pytestmark = [
    pytest.mark.xdist_group("artifacts"),
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs the C++ compiler g++"),
]
# Integer kernels run these on every processor; at 4 bits they have to be clipped.
NARROW = BitWidths(weights=4, activations=4)


@pytest.fixture(scope="module")
def teacher(tiny_folder: Path) -> LoadedModel:
    return load_model(ModelConfig(name=f"local-dir:{tiny_folder}"))


@pytest.fixture(scope="module")
def made(
    teacher: LoadedModel,
    programs: Callable[[Placement], ExportedProgram],
    ragged: list[CalibrationBatch],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Artifact, Path]:
    """The package that a calibration makes, as it is measured, and its file."""
    folder = tmp_path_factory.mktemp("packages")
    config = CalibrationConfig(
        teacher=ModelConfig(name="x"), images="x", output=str(folder), formats=["aoti"], settings=[NARROW]
    )
    observer = RangeObserver(teacher.model, "linear")
    observer.observe(ragged)
    variants = [(Variant(NARROW.label, NARROW), Values(observer.ranges()))]
    result = make_artifacts(config, teacher, programs("linear"), variants, images(), folder)
    assert result.refused == []
    (artifact,) = result.artifacts
    return artifact, folder / "w4a4.aoti.pt2"


@pytest.fixture
def package(made: tuple[Artifact, Path]) -> Path:
    return made[1]


def images(batch: int = 8) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def changed(package: Path, target: Path, **metadata: object) -> str:
    """Copy a package with other metadata; None leaves a key out."""
    with zipfile.ZipFile(package) as whole, zipfile.ZipFile(target, "w") as copy:
        for name in whole.namelist():
            content = whole.read(name)
            if name.endswith(".wrapper_metadata.json"):
                merged = {**json.loads(content), **metadata}
                content = json.dumps({key: value for key, value in merged.items() if value is not None}).encode()
            copy.writestr(name, content)
    return str(target)


def test_a_calibration_makes_a_package_that_computes_what_was_calibrated(made: tuple[Artifact, Path]) -> None:
    artifact, path = made
    assert [file.name for file in path.parent.iterdir()] == ["w4a4.aoti.pt2"]
    assert (artifact.format, artifact.size, artifact.note) == ("aoti", path.stat().st_size, None)
    assert artifact.errors is not None
    assert artifact.errors["deviation"] < 1e-3


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_any_number_of_images_of_any_layout_and_range_equals_the_pt2_file(
    batch: int, package: Path, files: Callable[[BitWidths, FormatName], Path]
) -> None:
    expected, compiled = load_quantized(files(NARROW, "pt2")), load_quantized(package, allow_compiled=True)
    for scale in (1, 10):
        given = (scale * images(batch)).contiguous(memory_format=torch.channels_last)
        assert relative_error(compiled(given), expected(given)) < 1e-3


def test_every_format_computes_what_was_trained(
    teacher: LoadedModel,
    programs: Callable[[Placement], ExportedProgram],
    ragged: list[CalibrationBatch],
    tmp_path: Path,
) -> None:
    observer = RangeObserver(teacher.model, "linear")
    observer.observe(ragged)
    variant = Variant("w4a4", NARROW)
    graph = LearnedGraph(teacher.model, "linear", variant, Values(observer.ranges()))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in graph.parameters():
            # Far from where training starts.
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    config = CalibrationConfig(
        teacher=ModelConfig(name="x"),
        images="x",
        output=str(tmp_path),
        formats=["pt2", "onnx", "aoti"],
        settings=[NARROW],
    )
    variants = [(Variant(NARROW.label, NARROW), graph.values())]
    made = make_artifacts(config, teacher, programs("linear"), variants, images(), tmp_path)
    assert made.refused == []
    keep = torch.arange(16).expand(8, -1)
    batch = DistillationBatch(images(), torch.zeros(8), keep, torch.full((8,), 16), [])
    with torch.no_grad():
        expected = graph(batch)
    for artifact in made.artifacts:
        assert relative_error(artifact.predict(images()), expected) < 1e-3


def test_compiled_code_is_not_opened_unless_it_is_allowed(package: Path, teacher: LoadedModel) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/packages/x.aoti.pt2", package.read_bytes())
    for uri in (str(package), "memory://packages/x.aoti.pt2"):
        with pytest.raises(CheckpointError, match="compiled code, which runs with all your rights when it is opened"):
            load_quantized(uri)
        with pytest.raises(CheckpointError, match="allow_compiled, for a file whose origin you trust"):
            open_artifact(uri, ModelConfig(name="x"), teacher)
        predict = open_artifact(uri, ModelConfig(name="x"), teacher, allow_compiled=True)
        assert predict(images()).shape == (8, 10)
    # A compiled package is not opened as data under another name either.
    memory.pipe_file("/packages/x.pt2", package.read_bytes())
    with pytest.raises(CheckpointError, match=r"x\.pt2' is a compiled package, which is code"):
        load_quantized("memory://packages/x.pt2", allow_compiled=True)


def test_a_package_states_names_normalization_and_images(package: Path, teacher: LoadedModel) -> None:
    opened = open_aoti(str(package))
    assert opened.facts == Facts.of(teacher)
    assert (opened.input_size, opened.batch_size) == ((3, 32, 32), None)


def test_images_that_the_code_was_not_compiled_for_are_refused(package: Path) -> None:
    opened = open_aoti(str(package))
    for shape in ((2, 3, 32, 16), (2, 1, 32, 32), (3, 32, 32), (0, 3, 32, 32)):
        with pytest.raises(CheckpointError, match=r"reads images of \['batch', 3, 32, 32\], not"):
            opened.predict(torch.zeros(shape))


def test_a_package_holds_no_sources_and_names_no_files_of_the_machine(package: Path) -> None:
    with zipfile.ZipFile(package) as archive:
        names = archive.namelist()
        whole = b"".join(archive.read(name) for name in names)
    assert not [name for name in names if name.endswith(".cpp")]
    assert b'File "/' not in whole


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"images": None}, "does not say which images it reads, and compiled code does not check them"),
        ({"images": "[null, 3]"}, "does not say which images it reads"),
        ({"instruction_sets": '["avx9_vnni"]'}, "was compiled on a processor with avx9_vnni, which this one lacks"),
        ({"instruction_sets": '["sve_max_length=7"]'}, "processor with sve_max_length=7, which this one lacks"),
        ({"AOTI_MACHINE": "riscv128"}, "was compiled for linux riscv128"),
        ({"class_names": '["a", "b"'}, "has metadata that cannot be read"),
    ],
)
def test_a_package_that_cannot_be_run_here_is_refused_before_it_is_loaded(
    metadata: dict[str, object], message: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(CheckpointError, match=message):
        open_aoti(changed(package, tmp_path / "x.aoti.pt2", **metadata))


def test_the_length_of_vectors_is_compared_as_well() -> None:
    graviton3 = {"architecture": "aarch64", "sve": True, "sve2": False, "sve_max_length": 256, "num_l1d": 64}
    assert list_instruction_sets(graviton3) == ["sve", "sve_max_length=256"]
    assert list_instruction_sets({"neon": True, "sve": False, "sve_max_length": 0}) == ["neon"]


def test_another_torch_is_told(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = changed(package, tmp_path / "x.aoti.pt2", torch='"2.0.0"')
    assert isinstance(open_aoti(uri), Opened)
    assert capsys.readouterr().err == f"warning: {uri}: compiled with torch 2.0.0, run with {torch.__version__}\n"


def test_files_of_another_kind_are_named(tmp_path: Path, files: Callable[[BitWidths, FormatName], Path]) -> None:
    path, empty = tmp_path / "x.aoti.pt2", io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    cases = {
        b"404: not found": "it is text, not an AOTInductor package",
        empty.getvalue(): "it holds 0 compiled models",
        files(NARROW, "pt2").read_bytes(): "it holds 0 compiled models",
    }
    for content, message in cases.items():
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            load_quantized(path, allow_compiled=True)


def test_a_missing_compiler_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    check_aoti()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"C\+\+ compiler 'no-such-compiler' is not installed here: install it"):
        check_aoti()


@pytest.mark.parametrize(
    ("weights", "activations", "with_vnni", "without"),
    [(8, 8, True, False), (7, 8, True, True), (8, 7, True, True), (4, 4, True, True), (8, 16, False, False)],
)
def test_integers_are_multiplied_where_their_sums_are_exact(
    weights: int,
    activations: int,
    with_vnni: bool,
    without: bool,
    quantized: Callable[[BitWidths], ExportedProgram],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = quantized(BitWidths(weights=weights, activations=activations))
    for found, expected in ((True, with_vnni), (False, without)):
        monkeypatch.setattr(aoti, "_adds_in_32_bits", lambda found=found: found)
        assert has_exact_integers(program) == expected
        note = aoti.FORMAT.note(program)
        assert (note is None) == expected
    assert note is None or ("no VNNI" in note) == (activations <= 8)


def test_one_call_runs_every_format(package: Path, files: Callable[[BitWidths, FormatName], Path]) -> None:
    expected = load_quantized(files(NARROW, "pt2"))(images())
    for path in (files(NARROW, "onnx"), package):
        model = load_quantized(str(path), allow_compiled=True)
        assert relative_error(model(images()), expected) < 1e-3
        assert model.facts.class_names is not None
        with pytest.raises(CheckpointError, match=r"reads images of \['batch', 3, 32, 32\], not \[3, 32, 32\]"):
            model(images()[0])


@pytest.fixture(scope="module")
def linear() -> ExportedProgram:
    """A program that takes seconds to compile."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)).eval()
    return torch.export.export(model, (torch.zeros(2, 3, 2, 2),))


def test_a_compiler_that_is_killed_is_no_reason_that_lasts(
    linear: ExportedProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\nkill -9 $$\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(ModelError, match="the model cannot be compiled by AOTInductor") as raised:
        aoti.save_aoti(linear, tmp_path / "x.aoti.pt2")
    assert not isinstance(raised.value, FormError)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file on which every write fails")
def test_a_full_disk_is_an_error_that_leaves_the_process_alive(linear: ExportedProgram, tmp_path: Path) -> None:
    (tmp_path / "x.aoti.pt2").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        aoti.save_aoti(linear, tmp_path / "x.aoti.pt2")
