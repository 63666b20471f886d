import timm.data

from pipeline.labels import match_classes, only_spelled_otherwise
from pipeline.models import ModelConfig
from pipeline.models.class_names import class_names


def imagenet_names() -> list[str]:
    """Names of a model's classes, as they are when it says nothing itself: timm's descriptions."""
    model = timm.create_model("test_vit")
    return class_names(ModelConfig(name="test_vit"), model)


def test_the_same_names_match_in_any_order_and_number() -> None:
    assert match_classes(["b", "a"], ["a", "b", "c"]) == [1, 0]


def test_case_spaces_hyphens_underscores_and_leading_zeros_do_not_matter() -> None:
    own = ["Polar bear", "T-shirt", "3", "10", "crème"]
    given = ["polar_bear", "t shirt", "03", "010", "cre\u0300me"]
    assert match_classes(given, own) == [0, 1, 2, 3, 4]


def test_names_that_differ_in_case_alone_are_told_apart() -> None:
    assert match_classes(["jersey", "Jersey", "x"], ["Jersey", "jersey", "X"]) == [1, 0, 2]


def test_what_matches_two_names_matches_none() -> None:
    assert match_classes(["JERSEY"], ["Jersey", "jersey"]) == [None]
    assert match_classes(["A", "a_"], ["a", "b"]) == [None, None]
    assert match_classes(["a", "a"], ["a", "b"]) == [None, None]
    assert match_classes(["1-0"], ["10"]) == [None]


def test_synsets_match_the_descriptions_that_timm_gives_a_model() -> None:
    own, synsets = imagenet_names(), timm.data.ImageNetInfo("imagenet-1k").label_names()
    assert match_classes(synsets, own) == list(range(1000))
    assert match_classes(own, synsets) == list(range(1000))
    # Imagenette, in another order.
    assert match_classes(["n03888257", "n01440764"], own) == [701, 0]
    # Two classes are called crane, and only a synset says which.
    assert match_classes(["n02012849", "n03126707"], own) == [134, 517]
    assert match_classes(["crane"], own) == [None]


def test_hugging_face_spells_two_names_of_imagenet_otherwise() -> None:
    own = imagenet_names()
    theirs = [{"crane (n02012849)": "crane", "crane (n03126707)": "crane2"}.get(name, name) for name in own]
    labels = match_classes(theirs, own)
    assert labels.count(None) == 2
    assert only_spelled_otherwise(theirs, labels, own)


def test_another_class_among_few_is_no_other_spelling() -> None:
    given, own = ["ant", "bee", "dog"], ["ant", "bee", "wolf"]
    assert not only_spelled_otherwise(given, match_classes(given, own), own)
    many = [f"class {number}" for number in range(1000)]
    shifted = [*many[1:500], "other", many[0], *many[501:]]
    assert not only_spelled_otherwise(shifted, match_classes(shifted, many), many)
