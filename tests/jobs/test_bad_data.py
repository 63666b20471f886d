"""Bad data that comes to light only while Ray reads it: a user sees our line, and no traceback before it."""

import importlib
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.dataset import schema
from tests.jobs.conftest import start_job

TIMEOUT_S = 200
JOBS = {
    # Scored last, when there are artifacts already.
    "calibrate": ("--images={whole}", "--labeled={damaged}", "--workers.size=0", "--formats=[pt2]"),
    "distill": ("--images={damaged}", "--workers.size=0", "--student.depth_pruned=[0]", "--epochs=1"),
    "evaluate": ("--labeled={damaged}",),
}


def write(path: Path, codes: list[bytes]) -> str:
    rows = [{"bytes": code, "path": None} for code in codes]
    columns = {"image": pa.array(rows, schema.IMAGE), "label": [0, 1, 2], "image_id": ["a", "b", "c"]}
    named = schema.arrow_schema([f"class {letter}" for letter in "abcdefghij"], columns=list(columns))
    path.write_bytes(schema.to_parquet(pa.table(columns, schema=named)))
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    """Labeled images, and the same with the last one cut off."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    codes = [schema.encode_image(image) for image in pixels]
    whole = write(tmp_path / "whole.parquet", codes)
    return {"whole": whole, "damaged": write(tmp_path / "damaged.parquet", [*codes[:2], codes[2][:-40]])}


def flags_of(job: str, data: dict[str, str], teacher: Path, output: Path) -> list[str]:
    return [f"--teacher.name=local-dir:{teacher}", f"--output={output}", *(flag.format(**data) for flag in JOBS[job])]


def check_reported(code: int | None, out: str, err: list[str], data: dict[str, str], output: Path) -> None:
    assert (code, out) == (1, ""), err
    *before, last = err
    assert last.startswith(f"error: DatasetError: image 'c' of '{data['damaged']}' cannot be decoded: ")
    prefixes = tuple(f"{job}: " for job in JOBS)
    assert all(line.removeprefix("warning: ").startswith(prefixes) for line in before), err
    assert not any(path.is_file() for path in output.rglob("*"))


@pytest.mark.parametrize("job", ["calibrate", "evaluate"])
@pytest.mark.usefixtures("ray_session")
def test_a_damaged_image_is_one_line_and_leaves_nothing(
    job: str, data: dict[str, str], tiny_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module(f"jobs.{job}").main
    code = main(flags_of(job, data, tiny_folder, tmp_path / "out"))
    out, err = capfd.readouterr()
    # What the session's cluster prints for its workers begins with their names.
    lines = [line for line in err.splitlines() if not re.match(r"(\x1b\[\d+m)?\(", line)]
    check_reported(code, out, lines, data, tmp_path / "out")


@pytest.mark.usefixtures("ray_session")
def test_so_it_is_in_a_process_of_the_jobs_own(data: dict[str, str], tiny_folder: Path, tmp_path: Path) -> None:
    process = start_job("distill", *flags_of("distill", data, tiny_folder, tmp_path / "out"))
    out, err = process.communicate(timeout=TIMEOUT_S)
    check_reported(process.returncode, out, err.splitlines(), data, tmp_path / "out")


@pytest.mark.parametrize("job", ["calibrate", "distill"])
@pytest.mark.usefixtures("ray_session")
def test_workers_that_find_it_are_not_started_again(
    job: str, data: dict[str, str], tiny_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # So that the workers read the images, a calibration's in their own processes, a training's in tasks of Ray Data.
    found_by_workers = ["--images", data["damaged"], "--workers.size=1", "--workers.device=cpu"]
    changes = {"calibrate": found_by_workers, "distill": [*found_by_workers, "--cache_gb=0"]}[job]
    code = importlib.import_module(f"jobs.{job}").main([*flags_of(job, data, tiny_folder, tmp_path / "out"), *changes])
    out, err = capfd.readouterr()
    assert (code, out) == (1, ""), err
    assert "trying again" not in err
    assert err.splitlines()[-1].startswith(f"error: DatasetError: image 'c' of '{data['damaged']}' cannot be decoded: ")
    assert "Traceback" not in err
