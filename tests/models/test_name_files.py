"""Class names as people have them in files; nothing is guessed."""

import json
from pathlib import Path

import pytest
import timm.data

from pipeline.errors import ConfigError
from pipeline.models.class_names import distinct_names
from pipeline.models.name_files import parse_class_names, read_class_names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat\ndog\n", ["cat", "dog"]),
        ("cat\r\ndog\r\n\r\n", ["cat", "dog"]),
        ("tench, Tinca tinca\ngoldfish, Carassius auratus", ["tench, Tinca tinca", "goldfish, Carassius auratus"]),
        ("n01440764\nn01443537", ["n01440764", "n01443537"]),
        # Names that hold numbers, and are not numbered by them.
        ("class 0\nclass 1\nclass 2", ["class 0", "class 1", "class 2"]),
        ("AM General Hummer SUV 2000\nAcura RL Sedan 2012", ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]),
        ("707-320\n727-200", ["707-320", "727-200"]),
        ("0\n1\n10\n2", ["0", "1", "10", "2"]),
        ('["cat", "dog"]', ["cat", "dog"]),
        ('{"0": "cat", "1": "dog"}', ["cat", "dog"]),
        ('{"1": "dog", "0": "cat"}', ["cat", "dog"]),
        ('{"dog": 1, "cat": 0}', ["cat", "dog"]),
        # Keras' imagenet_class_index.json, in which two classes have the same name.
        ('{"0": ["n02012849", "crane"], "1": ["n03126707", "crane"]}', ["crane (n02012849)", "crane (n03126707)"]),
        ('[["n01440764", "tench"], ["n01443537", "goldfish"]]', ["tench (n01440764)", "goldfish (n01443537)"]),
        ('{"id2label": {"0": ["n01440764", "tench"]}}', ["tench (n01440764)"]),
        # Folders named by numbers, in torchvision's class_to_idx: what is a number tells which are the names.
        ('{"3": 0, "12": 1}', ["3", "12"]),
        (
            '{"model_type": "vit", "id2label": {"0": "cat", "1": "dog"}, "label2id": {"cat": 0, "dog": 1}}',
            ["cat", "dog"],
        ),
        # The key says what is mapped, so that numbers may be text, as Hugging Face's training scripts write them.
        ('{"id2label": {"0": "cat", "1": "dog"}, "label2id": {"cat": "0", "dog": "1"}}', ["cat", "dog"]),
        ('{"id2label": {"0": "5", "1": "3"}, "label2id": {"5": 0, "3": 1}}', ["5", "3"]),
        ('{"label2id": {"5": "0", "3": "1"}}', ["5", "3"]),
        ('{"class_to_idx": {"dog": "1", "cat": "0"}}', ["cat", "dog"]),
        # The inverse of names that repeat has lost one of them.
        ('{"id2label": {"0": "a", "1": "b", "2": "a"}, "label2id": {"a": 2, "b": 1}}', ["a", "b", "a"]),
        ('{"classes": 2, "class_to_idx": {"dog": 1, "cat": 0}}', ["cat", "dog"]),
        ('{"architecture": "x", "label_names": ["cat", "dog"], "pretrained_cfg": {}}', ["cat", "dog"]),
        ('{"pretrained_cfg": {"label_names": ["cat", "dog"]}}', ["cat", "dog"]),
    ],
)
def test_names_in_the_order_of_their_numbers(text: str, names: list[str]) -> None:
    assert parse_class_names(text) == names


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ('{"0": "a", "2": "b"}', "does not number its 2 classes from 0 to 1: 1 is missing"),
        ('{"1": "a", "2": "b"}', "0 is missing"),
        ('{"a": 0, "b": 0}', "0 is there twice"),
        ('{"0": "a", "0": "b"}', "has the key '0' twice"),
        ('{"a": 0.0, "b": 1.0}', "maps 'a' to 0.0"),
        ('{"a": true, "b": false}', "maps 'a' to True"),
        ('{"0": ["tench", "n01440764"]}', "maps '0' to"),
        ('{"3": "0", "5": "1"}', "maps numbers to numbers"),
        (
            '{"id2label": {"0": "x", "1": "y"}, "label2id": {"x": 1, "y": 0}}',
            "other names in label2id than in id2label",
        ),
        ('{"id2label": {"0": "x", "1": "y", "2": "x"}, "label2id": {"x": 1, "y": 0}}', "names in label2id"),
        ('{"id2label": {"0": "x", "2": "y"}}', "1 is missing"),
        ('{"architecture": "x", "num_classes": 2}', "has none of id2label"),
        ("{0: 'tench', 1: 'goldfish'}", "looks like JSON and is not"),
        ('{"a": 0}\n{"b": 1}', "looks like JSON and is not"),
        ("{}", "is an empty object"),
        ("[]", "is an empty list"),
        ("[0, 1]", "has 0 as the name of class 0, not a text"),
        ('["a", null]', "has None as the name of class 1"),
        ('[{"id": 0, "name": "a"}]', "as the name of class 0, not a text"),
        ('["a", " "]', "blank name for class 1"),
        ("0,tench\n1,goldfish", "begin with a number"),
        ("id,name\n0,tench\n1,goldfish", "begin with a number"),
        ("0\ttench\n1\tgoldfish", "begin with a number"),
        ("0: tench\n1: goldfish", "begin with a number"),
        ("tench,0\ngoldfish,1", "end with a number"),
        ("tench: 0\ngoldfish: 1", "end with a number"),
        ("0 tench\n1 goldfish", "are numbered"),
        ("tench 0\ngoldfish 1", "are numbered"),
        ("1. tench\n2. goldfish", "numbered list"),
        ("n01440764 tench, Tinca tinca\nn01443537 goldfish", "WordNet"),
        ("a\tb\nc\td", "columns"),
        ("- tench\n- goldfish", "YAML list"),
        ('"tench",\n"goldfish"', "in quotes"),
        ("tench,\ngoldfish,", "end with a separator"),
        ("tench\n\ngoldfish", "has a blank line, line 2"),
        ("# names\ntench", "line 1, which is no name"),
        ("<html>\n<body>", "line 1, which is no name"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_class_names(text)


def test_names_that_repeat_are_made_different() -> None:
    info = timm.data.ImageNetInfo("imagenet-1k")
    names = [text.partition(", ")[0] for text in info.label_descriptions()]
    distinct = distinct_names(names)
    assert (distinct[134], distinct[517]) == ("crane (n02012849)", "crane (n03126707)")
    assert len(set(distinct)) == 1000
    assert distinct_names(["a", "b", "a"]) == ["a (0)", "b", "a (2)"]
    # As many classes as ImageNet's, which are others: the numbers of WordNet would be wrong.
    assert distinct_names(["x", *map(str, range(998)), "x"])[::999] == ["x (0)", "x (999)"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_of_every_editor(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "names.txt").write_text("Kätzchen\nHund\n", encoding=encoding)
    assert read_class_names(str(tmp_path / "names.txt")) == ["Kätzchen", "Hund"]
    (tmp_path / "names.json").write_text(json.dumps({"b": 1, "a": 0}), encoding=encoding)
    assert read_class_names(str(tmp_path / "names.json")) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.yaml", b"names: [a, b]", "is YAML"),
        ("a.csv", b"a\nb", "is a table"),
        ("a.json", b'"a"', "is 'a', neither a list nor an object"),
        ("a.txt", b"caf\xe9\nbar", "is not text in UTF-8"),
        ("a.txt", b"a\0b", "is not text"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ],
)
def test_other_files_are_named_with_what_to_give(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{name}' {reason}.*; give a JSON list of names") as refused:
        read_class_names(str(tmp_path / name))
    assert "\n" not in str(refused.value)
