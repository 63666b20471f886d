import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm.data
from torchvision.models._meta import _IMAGENET_CATEGORIES as torchvision_names

from pipeline.dataset import schema
from pipeline.dataset.classes import misnumbered
from pipeline.dataset.discovery import find_source
from pipeline.errors import DatasetError
from pipeline.inputs import find_labeled
from pipeline.inputs.labels import map_labels, match_classes, only_spelled_otherwise
from pipeline.models import ModelConfig, load_model
from pipeline.models.class_names import class_names
from pipeline.models.name_files import parse_class_names


def imagenet_names() -> list[str]:
    """Names of a model's classes, as they are when it says nothing itself: timm's descriptions."""
    model = timm.create_model("test_vit")
    return class_names(ModelConfig(name="test_vit"), model)[0]


def labels_of(given: list[str], own: list[str]) -> list[int | None]:
    return match_classes(given, own).labels


def test_the_same_names_match_in_any_order_and_number() -> None:
    assert labels_of(["b", "a"], ["a", "b", "c"]) == [1, 0]


def test_case_spaces_hyphens_underscores_and_leading_zeros_do_not_matter() -> None:
    own = ["Polar bear", "T-shirt", "3", "10", "crème"]
    given = ["polar_bear", "t shirt", "03", "010", "cre\u0300me"]
    assert labels_of(given, own) == [0, 1, 2, 3, 4]


def test_names_that_differ_in_case_alone_are_reported_apart() -> None:
    assert labels_of(["jersey", "Jersey", "x"], ["Jersey", "jersey", "X"]) == [1, 0, 2]


def test_what_matches_two_names_matches_none() -> None:
    assert labels_of(["JERSEY"], ["Jersey", "jersey"]) == [None]
    assert labels_of(["A", "a_"], ["a", "b"]) == [None, None]
    assert labels_of(["a", "a"], ["a", "b"]) == [None, None]
    assert labels_of(["1-0"], ["10"]) == [None]


@pytest.mark.parametrize(
    ("given", "own", "labels", "ambiguous"),
    [
        # The same name goes first, so that Namibia's is not lost.
        (["na", "NA", "q0"], ["na", "nb", "nc"], [0, None, None], []),
        (["NA", "Na", "q0"], ["na", "nb", "nc"], [None, None, None], ["NA", "Na"]),
        (["CAT", "z"], ["Cat", "cat"], [None, None], ["CAT"]),
        (["Cat", "cat", "x"], ["CAT", "dog", "bird"], [None, None, None], ["Cat", "cat"]),
        (["jersey", "JERSEY"], ["Jersey", "jersey"], [1, None], ["JERSEY"]),
        (["01", "1"], ["1", "2"], [None, 0], []),
        (["ant", "bee"], ["x", "y"], [None, None], []),
    ],
)
def test_names_that_match_several_are_reported_from_those_that_match_none(
    given: list[str], own: list[str], labels: list[int | None], ambiguous: list[str]
) -> None:
    match = match_classes(given, own)
    assert (match.labels, match.ambiguous) == (labels, ambiguous)


@pytest.mark.parametrize(
    ("names", "wrong"),
    [
        (["0", "1", "2"], None),
        (["1", "2", "3"], None),
        (["01", "02", "03"], None),
        (["0", "1", "3"], "3"),
        (["0", "1", "10", "2"], "10"),
        (["2", "3", "4"], "2"),
        (["class_0", "class_1", "class_3"], "class_3"),
        (["class_1", "class_2"], None),
        (["n01440764", "n02102040"], None),
        (["a1", "b7"], None),
        (["ant", "7"], None),
        ([], None),
    ],
)
def test_numbers_that_are_not_the_places_of_their_classes(names: list[str], wrong: str | None) -> None:
    assert misnumbered(names) == wrong


def test_ambiguous_names_are_no_other_spellings() -> None:
    own = [f"class {number}" for number in range(400)]
    given = [*own[:398], "CLASS 9", "Class_9"]
    assert match_classes(given, own).ambiguous == []
    given = ["CLASS 0", "Class_0", *own[2:]]
    match = match_classes(given, own)
    assert match.ambiguous == given[:2]
    assert not only_spelled_otherwise(given, match, own)


def test_synsets_match_the_descriptions_that_timm_gives_a_model() -> None:
    own, synsets = imagenet_names(), timm.data.ImageNetInfo("imagenet-1k").label_names()
    assert labels_of(synsets, own) == list(range(1000))
    assert labels_of(own, synsets) == list(range(1000))
    # Imagenette, in another order.
    assert labels_of(["n03888257", "n01440764"], own) == [701, 0]
    # Two classes are called crane, and only a synset says which.
    assert labels_of(["n02012849", "n03126707"], own) == [134, 517]
    assert labels_of(["crane"], own) == [None]


def test_synsets_match_one_of_the_words_that_describe_a_class() -> None:
    # Imagenette, whose folders are synsets, and a model that calls its classes as people do, in another order.
    own = ["chainsaw", "tench", "gas pump", "church", "golf_ball", "garbage truck"]
    folders = ["n01440764", "n03000684", "n03028079", "n03417042", "n03425413", "n03445777"]
    assert labels_of(folders, own) == [1, 0, 3, 5, 2, 4]
    assert labels_of(own, folders) == [1, 0, 4, 2, 5, 3]
    # As in Stanford Dogs.
    assert labels_of(["n02085620-Chihuahua", "n02099601-golden_retriever"], ["golden retriever", "Chihuahua"]) == [1, 0]
    # A crane is a bird or a machine.
    assert labels_of(["n02012849", "n03126707"], ["crane", "tench"]) == [None, None]
    # Model names of timm's, and folders of words.
    assert labels_of(["chainsaw", "tench"], imagenet_names()) == [491, 0]


def test_the_names_of_keras_and_of_torchvision_are_the_classes_of_imagenet() -> None:
    synsets = timm.data.ImageNetInfo("imagenet-1k").label_names()
    keras = parse_class_names(json.dumps({str(n): [synset, f"name_{n % 900}"] for n, synset in enumerate(synsets)}))
    assert keras[134] == "name_134 (n02012849)"
    assert labels_of(synsets, keras) == labels_of(keras, imagenet_names()) == list(range(1000))
    match = match_classes(synsets, torchvision_names)
    assert {label for place, label in enumerate(match.labels) if label != place} <= {None}
    assert not match.ambiguous
    assert match.labels.count(None) < 10
    assert only_spelled_otherwise(synsets, match, torchvision_names)


@pytest.mark.parametrize(
    ("folders", "own", "refused"),
    [
        (["n01440764", "n03888257"], ["parasol", "fish"], "although it is known what 'n01440764' is, 'tench, "),
        (["parasol", "fish"], ["n03888257", "n01440764"], "no name is the same, and the order is not known, although"),
        (["n01440764", "n03888257"], ["0", "1"], None),
        (["n01440764", "n03888257"], ["LABEL_0", "LABEL_1"], None),
        (["class_0", "class_1"], ["n03888257", "n01440764"], None),
    ],
)
def test_synsets_are_no_order_of_other_names(
    folders: list[str], own: list[str], refused: str | None, tmp_path: Path, tiny_folder: Path
) -> None:
    for name in folders:
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(schema.encode_image(np.zeros((8, 8, 3), np.uint8)))
    source, loaded = find_source(str(tmp_path)), load_model(ModelConfig(name=f"local-dir:{tiny_folder}"))
    loaded = replace(loaded, class_names=own)
    if refused is None:
        assert map_labels(source, loaded, needed=True)[0] == [0, 1]
        return
    with pytest.raises(DatasetError, match=refused):
        map_labels(source, loaded, needed=True)


def test_hugging_face_spells_two_names_of_imagenet_otherwise() -> None:
    own = imagenet_names()
    theirs = [{"crane (n02012849)": "crane", "crane (n03126707)": "crane2"}.get(name, name) for name in own]
    match = match_classes(theirs, own)
    assert match.labels.count(None) == 2
    assert only_spelled_otherwise(theirs, match, own)


def test_another_class_among_few_is_no_other_spelling() -> None:
    given, own = ["ant", "bee", "dog"], ["ant", "bee", "wolf"]
    assert not only_spelled_otherwise(given, match_classes(given, own), own)
    many = [f"class {number}" for number in range(1000)]
    shifted = [*many[1:500], "other", many[0], *many[501:]]
    assert not only_spelled_otherwise(shifted, match_classes(shifted, many), many)


def test_a_line_says_what_labels_without_names_are_taken_for(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [schema.encode_image(np.zeros((32, 32, 3), np.uint8))], "label": [0]}), uri)
    loaded = load_model(ModelConfig(name=f"local-dir:{tiny_folder}"))
    find_labeled(str(uri), replace(loaded, class_names=["ant", "bee", *loaded.class_names[2:]]))
    assert "have no names, and are read as numbers of model" in capsys.readouterr().err
    find_labeled(str(uri), replace(loaded, class_names=[str(label) for label in range(10)]))
    assert capsys.readouterr().err == ""


def test_where_labels_are_missing_the_column_that_may_hold_them_is_named(tiny_folder: Path, tmp_path: Path) -> None:
    uri = tmp_path / "target.parquet"
    image = schema.encode_image(np.zeros((8, 8, 3), np.uint8))
    pq.write_table(pa.table({"image": [image], "target": [0]}), uri)
    loaded = load_model(ModelConfig(name=f"local-dir:{tiny_folder}"))
    hint = r"has no labels: .*; if its column 'target' \(int64\) holds them, write it as `label`, of whole numbers$"
    with pytest.raises(DatasetError, match=hint):
        find_labeled(str(uri), loaded)
