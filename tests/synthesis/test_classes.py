"""Classes that a setting names."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import from_dict, parse_config
from pipeline.errors import ConfigError
from pipeline.synthesis import SynthesisConfig, plan_shards
from pipeline.synthesis.classes import list_classes
from pipeline.synthesis.config import located
from pipeline.synthesis.identity import config_digest
from pipeline.synthesis.networks import load_networks
from tests.synthesis.conftest import make_config

FLAGS = ["--teacher.name", "x", "--output", "o", "--images_per_class", "1"]


@pytest.mark.parametrize(
    ("flag", "labels"),
    [
        ("0-4", [0, 1, 2, 3, 4]),
        ("0-2,7, 5-6", [0, 1, 2, 7, 5, 6]),
        ("3", [3]),
        ("[4, 2]", [4, 2]),
        ("['0-1', 9]", [0, 1, 9]),
        ("null", list(range(10))),
    ],
)
def test_labels_and_ranges_in_a_flag(flag: str, labels: list[int]) -> None:
    assert list_classes(parse_config(SynthesisConfig, [*FLAGS, f"--classes={flag}"]).classes, 10) == labels


@pytest.mark.parametrize("content", ["0-2\n\n7 # seven\n", "0,1, 2\n7", '["0-2", 7]'])
def test_a_file_is_read_where_the_job_is_and_not_by_the_actors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, content: str
) -> None:
    (tmp_path / "some.txt").write_text(content)
    monkeypatch.chdir(tmp_path)
    config = make_config(tiny_folder, "out", classes="some.txt")
    for_actors = located(config)
    (tmp_path / "some.txt").unlink()
    assert sorted({label for row in plan_shards(for_actors) for label in row["labels"]}) == [0, 1, 2, 7]


def test_equal_classes_are_one_dataset_however_they_are_written(tiny_folder: Path) -> None:
    written: list[Any] = [[0, 1, 2, 3], "0-3", ["0-1", 2, "3"], "0,1,2-3"]
    configs = [make_config(tiny_folder, "out", classes=classes) for classes in written]
    assert len({config_digest(config, load_networks(config)) for config in configs}) == 1


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("9-0", "the range '9-0', which runs backward: write 0-9"),
        ("0-5,3", "classes holds 3 more than once"),
        ([4, "3-5"], "classes holds 4 more than once"),
        ("-1", "'-1', which is neither a label from 0 nor a range"),
        ("1.5", "'1.5', which is neither"),
        ([1, 1.9], r"1\.9, which is neither"),
        ([1, True], "True, which is neither"),
        ([1, "cat"], "'cat', which is neither"),
        ("1,,2", "'', which is neither"),
    ],
)
def test_what_is_no_list_of_classes(classes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(Path("teacher"), "out", classes=classes)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("content", ["0-2\n5 # cat\n", "[0, 1, 2, 5]"])
def test_a_file_of_classes_as_windows_writes_it(tmp_path: Path, content: str, encoding: str) -> None:
    file = tmp_path / "classes.txt"
    file.write_bytes(content.encode(encoding))
    assert list_classes(str(file), 10) == [0, 1, 2, 5]


@pytest.mark.parametrize("content", ["cat\n", "3-1", "1\n1", "", "[1, 2", "[" * 100_000, b"\xff\xfe"])
def test_what_is_no_file_of_classes(tmp_path: Path, content: str | bytes) -> None:
    file = tmp_path / "classes.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=r"classes .*classes\.txt"):
        list_classes(str(file), 10)
    with pytest.raises(ConfigError, match="neither labels and ranges such as 0-9,20 nor a file"):
        list_classes(str(tmp_path / "absent.txt"), 10)


def test_a_range_beyond_the_teachers_classes_is_not_spelled_out() -> None:
    with pytest.raises(ConfigError, match="classes holds 10, the teacher has 10 classes"):
        list_classes("0-999999999999", 10)


def test_thousands_of_classes_and_names_are_read_in_seconds() -> None:
    """The parser takes more than five minutes where the settings are lists."""
    many = list(range(21_843))
    teacher = {"name": "x", "class_names": [f"class {label}" for label in many]}
    config = from_dict(SynthesisConfig, {"teacher": teacher, "output": "o", "images_per_class": 1, "classes": many})
    assert list_classes(config.classes, len(many)) == many
