"""Settings are still read under the names that they had once, and one line says what they are called now."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from pipeline.config import from_dict, parse_config
from pipeline.distillation import DistillationConfig
from pipeline.errors import ConfigError
from pipeline.evaluation import EvaluationConfig
from pipeline.quantization import CalibrationConfig

COMMON = {"teacher": {"name": "t"}, "images": "i", "output": "o"}
FLAT = {"num_workers": 2, "cpus_per_worker": 3, "device": "cpu", "start_timeout_s": 60, "max_failures": 0}
SECTION = {
    **{"size": 2, "min_size": None, "cpus_per_worker": 3, "device": "cpu"},
    **{"start_timeout_s": 60, "max_failures": 0},
}
WARNING = (
    "warning: labelled is now labeled, labelled_split is now labeled_split, num_workers is now workers.size, "
    "cpus_per_worker is now workers.cpus_per_worker, device is now workers.device, "
    "start_timeout_s is now workers.start_timeout_s, max_failures is now workers.max_failures\n"
)
FORMER_LABELS, LABELS = {"labelled": "l", "labelled_split": None}, {"labeled": "l", "labeled_split": None}
# Config, settings that are needed, settings by their former names, the same by today's, and what is warned.
JOBS: dict[str, tuple[type, dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "calibrate": (CalibrationConfig, COMMON, FORMER_LABELS | FLAT, {**LABELS, "workers": SECTION}, WARNING),
    "distill": (
        DistillationConfig,
        COMMON | {"student": {"depth_pruned": [0]}, "lr": 1e-3},
        FORMER_LABELS | FLAT,
        {**LABELS, "workers": SECTION},
        WARNING,
    ),
    "evaluate": (
        EvaluationConfig,
        {"teacher": {"name": "t"}},
        FORMER_LABELS,
        LABELS,
        "warning: labelled is now labeled, labelled_split is now labeled_split\n",
    ),
}


def by_file(config_class: type, values: dict[str, Any], folder: Path) -> Any:
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(values))
    return parse_config(config_class, ["--config", str(file)])


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def by_flags(config_class: type, values: dict[str, Any], folder: Path) -> Any:
    return parse_config(config_class, [f"--{name}={as_text(value)}" for name, value in values.items()])


def by_flags_with_spaces(config_class: type, values: dict[str, Any], folder: Path) -> Any:
    return parse_config(config_class, [part for name in values for part in (f"--{name}", as_text(values[name]))])


def by_data(config_class: type, values: dict[str, Any], folder: Path) -> Any:
    return from_dict(config_class, values)


WAYS = (by_file, by_flags, by_flags_with_spaces, by_data)


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("read", WAYS)
def test_former_names_give_the_same_config_and_one_warning(
    read: Callable[..., Any], job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config_class, needed, former, today, warning = JOBS[job]
    expected = from_dict(config_class, needed | today)
    assert capsys.readouterr().err == ""
    assert read(config_class, needed | former, tmp_path) == expected
    assert capsys.readouterr().err == warning


@pytest.mark.parametrize("read", WAYS)
@pytest.mark.parametrize(
    "twice",
    [
        {"num_workers": 1, "workers.size": 1},
        {"num_workers": 1, "workers": {"size": 2}},
        {"labelled": "l", "labeled": "l"},
    ],
)
def test_a_setting_under_both_names_is_refused(read: Callable[..., Any], twice: dict[str, Any], tmp_path: Path) -> None:
    former = next(iter(twice))
    today = {"num_workers": "workers.size", "labelled": "labeled"}[former]
    with pytest.raises(ConfigError, match=f"^{former} is now {today}: give it once, not under both names$"):
        read(CalibrationConfig, COMMON | twice, tmp_path)


@pytest.mark.parametrize(
    ("in_file", "flag"), [({"num_workers": 1}, "--workers.size=2"), ({"workers": {"size": 1}}, "--num_workers=2")]
)
def test_a_flag_wins_over_a_file_whatever_names_they_use(
    in_file: dict[str, Any], flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(COMMON | in_file))
    assert parse_config(CalibrationConfig, ["--config", str(file), flag]).workers.size == 2
    assert capsys.readouterr().err == "warning: num_workers is now workers.size\n"


def test_a_section_may_hold_the_rest_by_todays_names(tmp_path: Path) -> None:
    for read in (by_file, by_data):
        config = read(CalibrationConfig, COMMON | {"num_workers": 2, "workers": {"device": "cpu"}}, tmp_path)
        assert (config.workers.size, config.workers.device) == (2, "cpu")


@pytest.mark.parametrize("job", JOBS)
def test_help_and_a_printed_config_show_the_names_of_today(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    config_class, needed, former, today, _ = JOBS[job]
    flags = [f"--{name}={as_text(value)}" for name, value in (needed | former).items()]
    for flag in ("--help", "--print_config"):
        with pytest.raises(SystemExit):
            parse_config(config_class, [*flags, flag])
        shown = capsys.readouterr().out
        assert "labelled" not in shown
        assert "num_workers" not in shown
        assert "labeled_split" in shown
    printed = yaml.safe_load(shown)
    assert {name: printed[name] for name in today} == today


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A section.

    Args:
        size: of it.
    """

    size: int = 1


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Names moved out of a section, and between two.

    Args:
        name: of it.
        rate: a number.
        first: a section.
        second: another.
    """

    FORMER_NAMES: ClassVar[dict[str, str]] = {"first.name": "name", "first.width": "second.size"}

    name: str = ""
    rate: float = 0.0
    first: Inner = field(default_factory=Inner)
    second: Inner = field(default_factory=Inner)


@pytest.mark.parametrize("read", [by_file, by_data])
def test_names_within_sections_are_known_too(
    read: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"first": {"name": "n", "width": 5, "size": 2}}
    assert read(Outer, values, tmp_path) == Outer(name="n", first=Inner(size=2), second=Inner(size=5))
    assert capsys.readouterr().err == "warning: first.name is now name, first.width is now second.size\n"
    assert values == {"first": {"name": "n", "width": 5, "size": 2}}
    with pytest.raises(ConfigError, match="give it once"):
        read(Outer, {**values, "name": "m"}, tmp_path)


def test_a_file_with_former_names_is_read_as_any_other(tmp_path: Path) -> None:
    """Numbers and text are what they are in a file without them: 1e-3 is a number, and '1e-3' is not."""
    text = "rate: 1e-3\nfirst: {name: '1e-3'}\n"
    (tmp_path / "a.yaml").write_text(text)
    assert parse_config(Outer, ["--config", str(tmp_path / "a.yaml")]) == Outer(name="1e-3", rate=0.001)
    assert parse_config(Outer, ["--config", text]) == Outer(name="1e-3", rate=0.001)


@pytest.mark.parametrize("content", ["first: {name: [unclosed", "first.name", "first: {name: x}\nextra: 1\n"])
def test_a_file_that_is_no_config_stays_an_error_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        parse_config(Outer, ["--config", str(tmp_path / "bad.yaml")])
    assert "\n" not in str(caught.value)
