import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from pipeline.config import digest, from_dict, make_parser, parse_config, to_dict
from pipeline.distillation import DistillationConfig
from pipeline.errors import ConfigError
from pipeline.quantization import CalibrationConfig
from pipeline.synthesis import SynthesisConfig


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A section.

    Args:
        size: must be positive.
        mode: one of two.
    """

    size: int = 1
    mode: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"size must be positive, not {self.size}")


@dataclass(frozen=True, kw_only=True)
class Outer:
    """The whole.

    Args:
        name: needed.
        inner: nested.
        pair: two numbers.
        steps: a list.
        free: anything.
    """

    name: str
    inner: Inner = field(default_factory=Inner)
    pair: tuple[float, float] = (0.5, 0.99)
    steps: list[int] | None = None
    free: dict[str, Any] = field(default_factory=dict)


def test_help_says_what_each_flag_is_once() -> None:
    text = make_parser(Outer).format_help()
    assert "The whole." in text
    assert "Args:" not in text
    assert text.count("needed.") == text.count("must be positive.") == 1


def test_file_then_flags(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: x\ninner: {size: 3}\nsteps: [1, 2]\nfree: {img_size: 32, deep: {a: 1}}\n")
    flags = ["--inner.mode", "b", "--steps", "[4]"]
    config = parse_config(Outer, ["--config", str(tmp_path / "a.yaml"), *flags])
    # Wherever they stand.
    assert parse_config(Outer, [*flags, "--config", str(tmp_path / "a.yaml")]) == config
    assert parse_config(Outer, [*flags[:2], f"--config={tmp_path / 'a.yaml'}", *flags[2:]]) == config
    expected = Outer(name="x", inner=Inner(size=3, mode="b"), steps=[4], free={"img_size": 32, "deep": {"a": 1}})
    assert config == expected


def test_there_and_back() -> None:
    config = Outer(name="x", inner=Inner(size=2), steps=[1], free={"a": [1, 2]})
    assert from_dict(Outer, to_dict(config)) == config
    assert to_dict(config)["pair"] == [0.5, 0.99]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--name", "x", "--inner.color", "red"], "inner.color"),
        (["--name", "x", "--inner.size", "many"], "^`inner.size` is an integer, not 'many'$"),
        (["--name", "x", "--inner.mode", "c"], "^`inner.mode` is one of 'a', 'b', not 'c'$"),
        (["--name", "x", "--stepz", "[1]"], "^'stepz' is no setting: did you mean `steps`?"),
        (["--name", "x", "--inner.size", "0"], "size must be positive, not 0"),
        ([], "^these settings must be given: name$"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--name", "x", "stray"], "^'stray' belongs to no flag"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config(Outer, argv)
    assert "\n" not in str(caught.value)


OF = ["--teacher.name", "x", "--output", "o"]
SYNTHESIS, CALIBRATION = [*OF, "--images_per_class", "1"], [*OF, "--images", "i"]
DISTILLATION = [*CALIBRATION, "--student.depth_pruned", "[0]"]


@pytest.mark.parametrize(
    ("config_class", "argv", "message"),
    [
        (SynthesisConfig, ["--config", "{classes: 3}"], "`classes` is a list like [a, b] or text or null, not '3'"),
        (SynthesisConfig, ["--inversion.micro_batch", "x"], "`inversion.micro_batch` is an integer or null, not 'x'"),
        (SynthesisConfig, ["--teacher.mean", "0.5"], "`teacher.mean` is a list like [a, b] or null, not '0.5'"),
        (
            SynthesisConfig,
            ["--teacher.crop_mode", "top"],
            "`teacher.crop_mode` is one of 'center', 'squash', 'border' or null, not 'top'",
        ),
        (SynthesisConfig, ["--teacher.model_args", "a"], "`teacher.model_args` is a mapping like {a: b}, not 'a'"),
        (SynthesisConfig, ["--inversion.betas", "[0.5]"], "`inversion.betas` is a list of 2, not [0.5]"),
        (
            SynthesisConfig,
            ["--inversion.stop_formula", "{keep_ratio: 0, by_step: 10}"],
            "keep_ratio must lie in (0, 1), not 0.0",
        ),
        (
            SynthesisConfig,
            ["--inversion.stop_formula.keep_ratio", "0.5"],
            "these settings must be given: inversion.stop_formula.by_step",
        ),
        (
            SynthesisConfig,
            ["--dry_run"],
            "--dry_run has no value: give one after it, such as true",
        ),
        (CalibrationConfig, ["--formats", "onnx"], "`formats` is a list like [a, b], not 'onnx'"),
        (
            CalibrationConfig,
            ["--latency_batch_size", "[1, x]"],
            """`latency_batch_size` is an integer or a list like [a, b], not "[1, 'x']\"""",
        ),
        (CalibrationConfig, ["--qat.steps", "x"], "`qat.steps` is an integer, not 'x'"),
        (CalibrationConfig, ["--qat", "{steps: 0}"], "qat.steps must be at least 1, not 0"),
        (DistillationConfig, ["--augment.flip", "3"], "augment.flip must lie in [0, 1], not 3.0"),
        (DistillationConfig, ["--images", "[{uri: a, weight: 0}]"], "images.weight must be at least 1, not 0"),
    ],
)
def test_the_parsers_own_words_reach_nobody(config_class: type, argv: list[str], message: str) -> None:
    given = {SynthesisConfig: SYNTHESIS, CalibrationConfig: CALIBRATION, DistillationConfig: DISTILLATION}
    with pytest.raises(ConfigError) as caught:
        parse_config(config_class, [*given[config_class], *argv])
    assert str(caught.value) == message


@pytest.mark.parametrize("content", ["name: [unclosed", "- a list", "name: x\nextra: 1\n", "inner: 3\nname: x\n"])
def test_files_that_are_no_config(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(ConfigError):
        parse_config(Outer, ["--config", str(tmp_path / "bad.yaml")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: x\nstepz: [1]\n", "the config file 'bad.yaml': 'stepz' is no setting: did you mean `steps`?"),
        ("name: {x\nsteps: 1: 2\n", "the config file 'bad.yaml' cannot be read: .* in line 2, column "),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_name(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        parse_config(Outer, ["--config", str(tmp_path / "bad.yaml")])


def test_unknown_keys_in_plain_data() -> None:
    with pytest.raises(ConfigError, match="extra"):
        from_dict(Outer, {"name": "x", "extra": 1})


def test_print_config_can_be_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_config(Outer, ["--name", "x", "--inner.size", "5", "--print_config"])
    assert ended.value.code == 0
    (tmp_path / "a.yaml").write_text(capsys.readouterr().out)
    assert parse_config(Outer, ["--config", str(tmp_path / "a.yaml")]) == Outer(name="x", inner=Inner(size=5))


def test_digest_is_of_the_content() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert len(digest({})) == 64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: a\nname: b\n", "'name' comes twice, again in line 2"),
        (b"name: a\ninner: {size: 1}\ninner: {mode: b}\n", "'inner' comes twice, again in line 3"),
        (b"name: a\ninner:\n  size: 1\n  size: 2\n", "'size' comes twice, again in line 4"),
        ("name: ü\n".encode("latin1"), "a config file is not text in UTF-8, save it as such"),
        ("name: a\n".encode("utf-16"), "a config file is not text in UTF-8, save it as such"),
    ],
)
def test_a_file_of_which_a_setting_would_be_dropped_or_misread_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        parse_config(Outer, ["--config", str(file)])


def test_no_setting_is_read_by_what_the_parser_will_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    """With PYTHONWARNINGS=error every job ended with a traceback."""
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "all")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert from_dict(Inner, to_dict(Inner())) == Inner()
