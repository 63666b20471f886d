"""JSON and YAML of strangers are read as data, with little memory, or refused in a line."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import from_dict, parse_config
from pipeline.documents import check_keys_differ, parse_json, parse_yaml
from pipeline.errors import ConfigError
from pipeline.synthesis.config import SynthesisConfig

SETTINGS = "output: x\nimages_per_class: 1\n"
# Nine levels of nine aliases each: 3.5 billion entries.
LAUGHS = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{level}: &a{level} [{','.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("teacher: !!python/object/apply:os.system ['touch RAN']\n", "could not determine a constructor"),
        ("teacher: {name: !!python/name:os.system }\n", "could not determine a constructor"),
        ("teacher: !include other.yaml\n", "could not determine a constructor"),
        ("teacher: {name: x, model_args: {a: {class_path: subprocess.Popen}}}\n", "no class_path of Python code"),
        ("teacher: {name: x, model_args: {a: '{class_path: subprocess.Popen}'}}\n", "no class_path of Python code"),
        ("teacher: {name: x}\n" + LAUGHS, "its aliases (*name) stand for more than 1000000 entries"),
        ("teacher: {name: x, model_args: &a {b: *a}}\n", "its aliases (*name) stand for more than 1000000 entries"),
        # It would end the process in the C code of YAML's composer.
        ("teacher: " + "[" * 200_000, "nested too deeply"),
    ],
)
def test_a_config_is_data_alone(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(SETTINGS + text)
    with pytest.raises(ConfigError) as caught:
        parse_config(SynthesisConfig, ["--config", "config.yaml"])
    assert message in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_section_in_a_file_of_its_own_is_data_as_well(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"{SETTINGS}teacher: {tmp_path / 'teacher.yaml'}\n")
    for text in ("name: !!python/name:os.system\n", "name: x\nmodel_args: {a: {class_path: subprocess.Popen}}\n"):
        (tmp_path / "teacher.yaml").write_text(text)
        with pytest.raises(ConfigError):
            parse_config(SynthesisConfig, ["--config", str(tmp_path / "config.yaml")])


@pytest.mark.parametrize(
    "value",
    [
        [{"class_path": "idlelib.B"}],
        "{'class_path' : idlelib.B}",
        "[class_path: idlelib.B]",
        '{"a": 1,"class_path": "idlelib.B"}',
        r'{"class\u005fpath": "idlelib.B"}',
        "[&a class_path, {*a : idlelib.B}]",
    ],
)
def test_plain_data_with_a_class_path_is_refused_before_anything_is_imported(value: Any) -> None:
    values = {"teacher": {"name": "x", "model_args": {"a": value}}, "output": "x", "images_per_class": 1}
    with pytest.raises(ConfigError, match="no class_path"):
        from_dict(SynthesisConfig, values)
    assert "idlelib" not in sys.modules


@pytest.mark.parametrize("name", ["/data/class_paths.json", "s3://b/class_path/x", "a class_path", r"C:\x"])
def test_names_that_hold_the_words_class_path_are_only_names(name: str) -> None:
    values = {"teacher": {"name": "x", "checkpoint": name}, "output": name, "images_per_class": 1}
    assert from_dict(SynthesisConfig, values).output == name
    assert from_dict(SynthesisConfig, values).teacher.checkpoint == name


def test_aliases_are_read_where_they_stand_for_few_entries() -> None:
    assert parse_yaml("a: &a [1, 2]\nb: [*a, *a]\n") == {"a": [1, 2], "b": [[1, 2], [1, 2]]}
    assert parse_yaml("a & b * c") == "a & b * c"
    with pytest.raises(yaml.YAMLError):
        parse_yaml("!!python/object/apply:os.getcwd []")


def test_deep_json_is_no_json() -> None:
    assert parse_json('{"a": [1]}') == {"a": [1]}
    with pytest.raises(json.JSONDecodeError, match="nested too deeply"):
        parse_json("[" * 200_000)


def test_several_merges_of_yaml_are_no_repetition() -> None:
    check_keys_differ("a: &a {x: 1}\nb: &b {y: 2}\nc:\n  <<: *a\n  <<: *b\n")
    with pytest.raises(ValueError, match="'y' comes twice, again in line 4"):
        check_keys_differ("a: &a {x: 1}\nb:\n  y: 1\n  y: 2\n")
