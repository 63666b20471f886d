import re

import pytest

from pipeline.dataset.card import card_class_names, card_config, card_splits
from pipeline.dataset.classes import doubtful_order, order_classes
from pipeline.dataset.generations import check_one_generation, missing_shards
from pipeline.dataset.splits import (
    Splits,
    check_no_hidden_split_folders,
    check_no_hidden_splits,
    check_one_dataset,
    choose_split,
    folder_splits,
    parquet_splits,
)
from pipeline.errors import DatasetError


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00005.parquet", "train"),
        ("data/holdout-00000-of-00001-a1b2c3.parquet", "holdout"),
        ("default/validation/0000.parquet", "validation"),
        ("my_val_data/x.parquet", "validation"),
        ("mnist_train.parquet", "train"),
        ("Test.PARQUET", "test"),
        ("train2.parquet", "train"),
        ("my-test/dev.parquet", "validation"),
        ("split=train/0.parquet", "train"),
        ("split=test/part-00000-of-00001.parquet", "test"),
        ("train(1).parquet", "train"),
        ("test+extra.parquet", "test"),
        ("[val]/a,b.parquet", "validation"),
        ("is_train=0/0.parquet", None),
        ("label=valid/0.parquet", None),
        ("contest.parquet", None),
        ("trainer.parquet", None),
        ("train_test.parquet", None),
        ("part-00000-0123abcd.parquet", None),
    ],
)
def test_the_split_of_a_parquet_file_is_in_its_name_or_its_folders(name: str, split: str | None) -> None:
    found = parquet_splits([name])
    assert (found.files, found.others) == ({} if split is None else {split: [name]}, [name] if split is None else [])


def test_folders_are_splits_only_if_all_are_named_so() -> None:
    assert set(folder_splits(["train/ant/x.png", "val/ant/x.png"]).files) == {"train", "val"}
    assert set(folder_splits(["train/x.png", "test/x.png"]).files) == {"train", "test"}
    assert set(folder_splits(["train_images/a/x.png"]).files) == {"train_images"}
    assert set(folder_splits(["train2017/x.png", "val2017/x.png"]).files) == {"train2017", "val2017"}
    assert set(folder_splits(["split=train/a/x.png", "split=test/a/x.png"]).files) == {"split=train", "split=test"}
    # Classes of vehicles, and of trains.
    assert not folder_splits(["train/x.png", "bus/x.png"]).files
    assert not folder_splits(["freight train/x.png", "train set/x.png"]).files
    assert not folder_splits(["train/ant/x.png", "x.png"]).files


def test_a_split_is_chosen_by_its_name_or_another_word_for_it() -> None:
    splits = Splits({"train": ["a"], "val": ["b"]}, [])
    assert choose_split("u", splits, "val") == ("val", ["b"])
    assert choose_split("u", splits, "validation") == ("val", ["b"])
    assert choose_split("u", Splits({"train": ["a"]}, []), None) == ("train", ["a"])
    assert choose_split("u", Splits({}, ["a"]), None) == (None, ["a"])
    with pytest.raises(DatasetError, match="'u' has no split 'test': its splits are 'train', 'val'"):
        choose_split("u", splits, "test")
    with pytest.raises(DatasetError, match="'u' has no split 'test': it has no splits"):
        choose_split("u", Splits({}, ["a"]), "test")


def test_several_splits_are_not_read_as_one() -> None:
    with pytest.raises(DatasetError, match="has the splits 'test', 'train': choose one with images_split or labeled_"):
        choose_split("u", Splits({"train": ["a"], "test": ["b"]}, []), None)
    with pytest.raises(DatasetError, match=r"split 'train' and files of no split, such as 'holdout\.parquet'"):
        choose_split("u", parquet_splits(["train.parquet", "holdout.parquet"]), None)


def test_numbered_files_that_are_absent_are_counted() -> None:
    names = [f"train-{number:05d}-of-00004.parquet" for number in (0, 3)]
    assert missing_shards([*names, "test-00000-of-00001.parquet", "x.parquet"]) == {"train": (2, 4)}
    assert missing_shards(["a/00001-of-00003.parquet", "b/part_1_of_1.parquet"]) == {"a/": (1, 3)}


@pytest.mark.parametrize(
    ("names", "two"),
    [
        (["train-00000-of-00001.parquet", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], (0, 1)),
        (["data/00000-of-00002.parquet", "data/00001-of-00002.parquet", "data/00000-of-00004.parquet"], (0, 2)),
        (["train-00000-of-00002-0a1b2c3d4e5f0a1b.parquet", "train-00000-of-00002-c3d40a1b2c3d4e5f.parquet"], (0, 1)),
        (["train-00000-of-00001.parquet", "train-00000-of-00001 (1).parquet"], (0, 1)),
        (["part_1_of_2.parquet", "part_1_of_3.parquet"], (0, 1)),
        (["train-00000-of-00001.parquet", "train-00000-of-00002-c3d40a1b2c3d4e5f.parquet"], (0, 1)),
        (
            [
                "part-00000-of-00001-0a1b2c3d-0a1b-4c3d-8e5f-0a1b2c3d4e5f.parquet",
                "part-00000-of-00002-ca1b2c3d-0a1b-4c3d-8e5f-0a1b2c3d4e5f.parquet",
            ],
            (0, 1),
        ),
        (["train-00000-of-00002-0a1b2c3d4e5f0a1b.parquet", "train-00001-of-00002-c3d40a1b2c3d4e5f.parquet"], None),
        (["rank-0-of-2-0a1b2c3d.parquet", "rank-0-of-2-0a1b2c3e.parquet"], None),
        (["rank_0_of_2_00000.parquet", "rank_0_of_2_00001.parquet", "rank_1_of_2_00000.parquet"], None),
        (["x-00000-of-00002.part0.parquet", "x-00000-of-00002.part1.parquet"], None),
        (["shard_3_of_10_batch_0.parquet", "shard_3_of_10_batch_1.parquet"], None),
        (["fold_1_of_5_train.parquet", "fold_1_of_5_test.parquet", "fold_2_of_5_train.parquet"], None),
        (["page-1-of-3-en.parquet", "page-1-of-3-de.parquet"], None),
        (["day-1-of-3-20260101.parquet", "day-1-of-3-20260102.parquet"], None),
        (["train-00000-of-00001.parquet", "test-00000-of-00002.parquet"], None),
        (["day=1/part-00000-of-00001.parquet", "day=2/part-00000-of-00002.parquet"], None),
        (["part-00000-0a1b.c000.parquet", "part-00000-c3d4.c000.parquet"], None),
    ],
)
def test_two_generations_of_files_in_a_folder_are_refused(names: list[str], two: tuple[int, int] | None) -> None:
    if two is None:
        check_one_generation("u", names)
        return
    first, second = (re.escape(names[place]) for place in two)
    with pytest.raises(
        DatasetError,
        match=f"'u' has '{first}' and '{second}', by their names of two generations of .*twice: name those to read",
    ):
        check_one_generation("u", names)


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["160px/train-00000-of-00001.parquet", "320px/train-00000-of-00001.parquet"], "'160px' and '320px'"),
        (["alpha/train/0000.parquet", "beta/train/0000.parquet"], "'alpha' and 'beta'"),
        (["alpha/train/0000.parquet", "beta/partial-train/0000.parquet"], "'alpha' and 'beta'"),
        (["train/alpha/0000.parquet", "train/beta/0000.parquet"], "'alpha' and 'beta'"),
        (["a/train.parquet", "train.parquet"], "'' and 'a'"),
        (["config=a/split=train/0.parquet", "config=b/split=train/0.parquet"], "'config=a' and 'config=b'"),
        (["default/train/0000.parquet", "default/train/0001.parquet"], None),
        (["train/2026-01-01/0.parquet", "train/2026-01-02/0.parquet"], None),
        (["2026-01-01/train.parquet", "2026-01-02/train.parquet"], None),
        (["train/shard_0/0.parquet", "train/shard_11/0.parquet"], None),
        (["day=1/train.parquet", "day=2/train.parquet"], None),
        (["split=train/day=1/0.parquet", "split=train/day=2/0.parquet"], None),
    ],
)
def test_one_split_in_several_configurations_is_refused(names: list[str], folders: str | None) -> None:
    ((split, files),) = parquet_splits(names).files.items()
    assert (split, files) == ("train", names)
    if folders is None:
        check_one_dataset("u", split, files)
        return
    with pytest.raises(DatasetError, match=f"split 'train' in several folders, {folders} among them.*the URI of one"):
        check_one_dataset("u", split, files)


@pytest.mark.parametrize(
    "names",
    [
        ["train/160px/0.parquet", "train/320px/0.parquet"],
        ["train_160px/0.parquet", "train_320px/0.parquet"],
        ["train_160px.parquet", "train_320px.parquet"],
        ["64x64/0.parquet", "128x128/0.parquet"],
        ["train/size-64/0.parquet", "train/size-128/0.parquet"],
    ],
)
def test_the_same_images_at_several_sizes_are_not_one_dataset(names: list[str]) -> None:
    split = next(iter(parquet_splits(names).files), None)
    with pytest.raises(DatasetError, match=rf"has '{names[0]}' and '{names[1]}', probably the same.* the URI of one"):
        check_one_dataset("u", split, names)


def test_numbers_that_are_no_sizes_are_parts_of_one_dataset_and_gaps_are_reported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    check_one_dataset("u", "train", ["train/160px/0.parquet", "train/160px/1.parquet"])
    check_one_dataset("u", "train", ["train/2x4 bricks/0.parquet", "train/2x2 bricks/0.parquet"])
    check_one_dataset("u", "train", ["train/0/0.parquet", "train/1/0.parquet"])
    assert capsys.readouterr().err == ""
    check_one_dataset("u", "train", ["train/64/0.parquet", "train/128/0.parquet"])
    told = capsys.readouterr().err
    assert told.startswith("warning: 'u': the folders 64 and 128 are not numbered consecutively, and are read as one")


def test_a_tree_of_files_without_splits_may_be_nested() -> None:
    names = ["alpha/0.parquet", "beta/x/0.parquet", "0.parquet", "2026/01/0.parquet"]
    assert parquet_splits(names) == Splits({}, names)
    check_one_dataset("u", None, names)
    check_no_hidden_splits("u", names)


def test_the_folder_tells_the_split_of_files_that_are_all_numbered_alike() -> None:
    names = [f"{split}/part-00000-of-00001.parquet" for split in ("train", "test")]
    assert parquet_splits(names).files == {"train": names[:1], "test": names[1:]}
    others = ["test_data/holdout-00000-of-00001.parquet", "test_data/fit-00000-of-00001.parquet"]
    assert set(parquet_splits(others).files) == {"holdout", "fit"}


@pytest.mark.parametrize(
    "names",
    [
        ["trainset", "testset"],
        ["imagenetTrain", "imagenetVal"],
        ["trainA", "testA"],
        ["TRAININGDATA_60k", "TESTDATA_10k"],
        ["train_test", "trainset"],
        ["is_train=0", "is_train=1"],
    ],
)
def test_names_that_suggest_different_splits_are_refused(names: list[str]) -> None:
    for files in ([f"{name}.parquet" for name in names], [f"{name}/0.parquet" for name in names]):
        assert not parquet_splits(files).files
        with pytest.raises(DatasetError, match="named like different splits: give the URI of one, or rename"):
            check_no_hidden_splits("u", [*files, "extra.parquet"])


def test_names_that_suggest_one_split_or_none_are_files_of_one_dataset() -> None:
    check_no_hidden_splits("u", ["trainset/0.parquet", "trainset/1.parquet", "more/0.parquet"])
    check_no_hidden_splits("u", ["latest/value0.parquet", "latest/value1.parquet"])
    check_no_hidden_splits("u", ["dEv4fTq9xK2mBz0.parquet", "a8tEst3Lw7qPz2x.parquet"])


def test_folders_of_images_that_all_suggest_a_split_are_refused() -> None:
    with pytest.raises(DatasetError, match="'trainA' and 'testA' are named like different splits"):
        check_no_hidden_split_folders("u", ["trainA/x.png", "testA/x.png"])
    with pytest.raises(DatasetError, match="'train' and 'testset' are named"):
        check_no_hidden_split_folders("u", ["train/x.png", "testset/x.png"])
    check_no_hidden_split_folders("u", ["contest/x.png", "value/x.png", "ant/x.png"])
    check_no_hidden_split_folders("u", ["trainset/x.png"])


def test_numbers_are_sorted_by_value_and_other_names_as_text() -> None:
    assert order_classes({"10", "9", "0"}) == ["0", "9", "10"]
    assert order_classes({"10", "09", "00"}) == ["00", "09", "10"]
    assert order_classes({"b", "a", "10"}) == ["10", "a", "b"]
    with pytest.raises(DatasetError, match="'01' and '1' are the same number"):
        order_classes({"1", "01"})


@pytest.mark.parametrize(
    ("names", "doubtful"),
    [
        (["0", "1", "10", "2"], None),
        (["ant", "bee"], None),
        (["class01", "class10"], None),
        (["class1", "class10", "class2"], ("class10", "class2")),
        (["Zebra", "ant"], ("Zebra", "ant")),
        (["a²", "a1"], None),
    ],
)
def test_an_order_is_doubtful_where_torchvision_and_timm_differ(
    names: list[str], doubtful: tuple[str, str] | None
) -> None:
    assert doubtful_order(names) == doubtful


CARD = {
    "configs": [
        {"config_name": "small", "data_files": "s.parquet"},
        {
            "config_name": "large",
            "default": True,
            "data_files": [
                {"split": "train", "path": ["a/*.parquet", "b/**"]},
                {"split": "test", "path": "held_out/*.parquet"},
                {"split": "validation", "path": "not_here/*"},
            ],
        },
    ],
    "dataset_info": [
        {"config_name": "small", "features": []},
        {
            "config_name": "large",
            "features": [
                {"name": "image", "dtype": "image"},
                {"name": "label", "dtype": {"class_label": {"names": {str(10 - n): f"n{10 - n}" for n in range(11)}}}},
            ],
        },
    ],
}


def test_a_card_says_which_files_are_which_split() -> None:
    config = card_config("u", CARD)
    assert config is not None
    names = ["a/0.parquet", "a/x/0.parquet", "b/x/0.parquet", "held_out/train.parquet", "s.parquet"]
    splits = card_splits("u", config, names)
    assert splits == Splits({"train": ["a/0.parquet", "b/x/0.parquet"], "test": ["held_out/train.parquet"]}, [])
    assert card_class_names(CARD, config) == [f"n{n}" for n in range(11)]
    with pytest.raises(DatasetError, match=r"lists data_files such as \['a/\*.parquet'\], and none is here"):
        card_splits("u", config, ["other.parquet"])


def test_a_card_with_several_configurations_and_no_default_is_refused() -> None:
    card = {"configs": [{"config_name": name, "data_files": f"{name}/*"} for name in ("full", "small")]}
    with pytest.raises(DatasetError, match="has several configurations, 'full', 'small', according to its README"):
        card_config("u", card)


def test_a_card_that_is_not_as_documented_is_named() -> None:
    with pytest.raises(DatasetError, match=r"data_files entry \{'path': 'x'\}, without split or path"):
        card_splits("u", {"data_files": [{"path": "x"}]}, ["x"])
    assert card_config("u", {"license": "mit"}) is None
    assert card_splits("u", {"config_name": "default"}, ["x"]) is None
    assert card_splits("u", {"data_dir": "d"}, ["d/x", "e/x"]) == Splits({"train": ["d/x"]}, [])
    assert card_class_names({"dataset_info": {"features": [{"name": "label", "dtype": "int64"}]}}, None) is None


def test_files_in_the_folder_that_a_card_names_are_split_by_their_names_as_hugging_face_splits_them() -> None:
    config = {"config_name": "default", "data_dir": "data"}
    names = [f"{folder}/{split}-00000-of-00001.parquet" for folder in ("data", "other") for split in ("test", "train")]
    assert card_splits("u", config, names) == Splits({"test": [names[0]], "train": [names[1]]}, [])
    # Names count from the folder on.
    assert card_splits("u", {"data_dir": "test/"}, ["test/0.parquet"]) == Splits({"train": ["test/0.parquet"]}, [])
    with pytest.raises(DatasetError, match="are named like different splits"):
        card_splits("u", config, ["data/trainset/0.parquet", "data/testset/0.parquet"])
    assert card_splits("u", config, ["other/0.parquet"]) is None


def test_names_of_the_classes_of_another_configuration_are_not_read() -> None:
    features = [{"name": "label", "dtype": {"class_label": {"names": ["ant", "bee"]}}}]
    configs = [{"config_name": "a", "default": True, "data_dir": "a"}, {"config_name": "b", "data_dir": "b"}]
    card = {"configs": configs, "dataset_info": {"config_name": "b", "features": features}}
    assert card_class_names(card, card_config("u", card)) is None
    assert card_class_names(card, configs[1]) == ["ant", "bee"]
    # One that says nothing, and one of the only configuration, whose name the card leaves out.
    assert card_class_names({"configs": configs, "dataset_info": {"features": features}}, configs[0]) == ["ant", "bee"]
    assert card_class_names(card, None) == ["ant", "bee"]


def test_a_pattern_of_a_card_that_cannot_be_read_is_named() -> None:
    with pytest.raises(DatasetError, match=r"'u': its README.md has the pattern 'data/\*\*.parquet', which cannot be"):
        card_splits("u", {"data_files": "data/**.parquet"}, ["data/0.parquet"])
