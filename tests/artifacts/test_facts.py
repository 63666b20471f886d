"""Class names and normalization beside the weights, and classes compared by name."""

import pytest

from pipeline.artifacts.facts import Facts, class_columns
from pipeline.errors import CheckpointError
from pipeline.models import ModelConfig, load_model


@pytest.mark.parametrize(
    ("own", "wanted", "columns"),
    [
        (["a", "b", "c"], ["a", "b", "c"], [0, 1, 2]),
        (["b", "c", "a"], ["a", "b", "c"], [2, 0, 1]),
        # Numbers are names like others: folders sorted as text.
        (["0", "10", "2"], ["0", "2", "10"], [0, 2, 1]),
        (None, ["a", "b", "c"], [0, 1, 2]),
        (["a", "b", "c"], None, [0, 1, 2]),
        (None, None, [0, 1, 2]),
    ],
)
def test_classes_are_found_by_their_names(own: list[str] | None, wanted: list[str] | None, columns: list[int]) -> None:
    assert class_columns(own, wanted, 3, "x.onnx") == columns


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (["a", "b", "d"], "which the teacher does not have: 'd'; of the teacher's it lacks: 'c'"),
        (["a", "b"], "'x.onnx' has other classes than the teacher: of the teacher's it lacks: 'c'"),
        (["a", "b", "c", "d", "e", "f", "g"], "which the teacher does not have: 'd', 'e', 'f' and 1 more"),
        (["a", "b", "b"], "of the teacher's it lacks: 'c'; names that repeat"),
    ],
)
def test_other_classes_are_refused_with_the_names_that_differ(own: list[str], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        class_columns(own, ["a", "b", "c"], 3, "x.onnx")
    assert message in str(caught.value)


def test_facts_survive_being_written() -> None:
    facts = Facts(["ä", "b, c", '"'], (0.1, 0.2, 0.3), (1.0, 1.0, 0.5))
    assert Facts.from_strings({**facts.to_strings(), "producer": "somebody"}, "x") == facts
    assert Facts.from_strings({}, "x") == Facts()


@pytest.mark.parametrize(
    "values",
    [
        *({"class_names": "[1, 2]"}, {"class_names": "{"}, {"mean": '"x"'}, {"std": "5"}, {"mean": "[null]"}),
        *({"names": "cat and dog"}, {"names": "{0: 'cat', 2: 'dog'}"}, {"id2label": '{"0": ["cat"]}'}),
        # Two that differ, one without the other, and of pixels from 0 to 255.
        *({"names": "{0: 'cat'}", "id2label": '{"0": "dog"}'}, {"mean": "[0.5]"}, {"std": "[0.5]"}),
        {"mean": "[123.7, 116.3, 103.5]", "std": "[58.4, 57.1, 57.4]"},
    ],
)
def test_metadata_that_is_something_else_is_refused(values: dict[str, str]) -> None:
    with pytest.raises(CheckpointError, match=r"'x\.pt2' has metadata that cannot be read"):
        Facts.from_strings(values, "x.pt2")


@pytest.mark.parametrize(
    "values",
    [
        {"names": "{0: 'cat', 1: \"dog's\"}"},
        {"names": "['cat', \"dog's\"]"},
        {"id2label": '{"1": "dog\'s", "0": "cat"}'},
        {"label2id": '{"cat": 0, "dog\'s": 1}', "id2label": '{"0": "LABEL_0", "1": "LABEL_1"}'},
        {"class_names": '["cat", "dog\'s"]', "names": "{0: 'class0', 1: 'class1'}"},
    ],
)
def test_names_are_read_as_other_programs_write_them(values: dict[str, str]) -> None:
    assert Facts.from_strings({**values, "task": "classify"}, "x").class_names == ["cat", "dog's"]


def test_names_that_a_library_filled_in_are_none() -> None:
    assert Facts.from_strings({"id2label": '{"0": "LABEL_0", "1": "LABEL_1"}'}, "x").class_names is None
    assert Facts.from_strings({"names": "{0: 'class0', 1: 'class1'}"}, "x").class_names is None
    assert Facts.from_strings({"class_names": '["class0", "class1"]'}, "x").class_names == ["class0", "class1"]


def test_numbers_that_nobody_gave_are_no_names() -> None:
    named = load_model(ModelConfig(name="test_vit", num_classes=2), trained=False)
    assert Facts.of(named).class_names is None
    named = load_model(ModelConfig(name="test_vit", num_classes=2, class_names=("a", "b")), trained=False)
    assert Facts.of(named).class_names == ["a", "b"]
