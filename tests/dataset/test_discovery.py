"""Kinds of datasets found at a location, and messages about skipped files."""

import os
import re
from pathlib import Path

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image
from s3fs import S3FileSystem

from pipeline.dataset import write_images
from pipeline.dataset.discovery import find_source
from pipeline.dataset.listing import list_tree
from pipeline.dataset.units import ImageFiles
from pipeline.errors import DatasetError

PIXELS = np.zeros((1, 8, 8, 3), np.uint8)


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def parquet(path: Path, names: list[str] | None = None, count: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_images(str(path), PIXELS.repeat(count, 0), [0] * count, names or ["a", "b"])


def found(uri: Path | str, split: str | None = None) -> dict[str, int | None]:
    """Name and label of each image of a folder."""
    units = find_source(str(uri), split=split).units
    return {name: label for unit in units if isinstance(unit, ImageFiles) for _, name, label in unit.files}


def test_folders_that_are_numbers_are_labels_by_number(tmp_path: Path) -> None:
    for number in range(12):
        image(tmp_path / str(number) / "x.png")
    assert found(tmp_path) == {f"{number}/x.png": number for number in range(12)}


def test_empty_class_folders_count_and_others_without_images_do_not(tmp_path: Path) -> None:
    for name in ("ant/x.png", "cat/x.png"):
        image(tmp_path / name)
    (tmp_path / "bee").mkdir()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "x.xml").touch()
    (tmp_path / ".ipynb_checkpoints").mkdir()
    assert find_source(str(tmp_path)).class_names == ["ant", "bee", "cat"]
    assert found(tmp_path) == {"ant/x.png": 0, "cat/x.png": 2}


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    image(tmp_path / "stock" / "ant" / "x.png")
    image(tmp_path / "v" / "cat" / "x.png")
    os.symlink("../stock/ant", tmp_path / "v" / "ant")
    os.symlink("../../stock/ant/x.png", tmp_path / "v" / "cat" / "y.png")
    os.symlink("v", tmp_path / "w")
    expected = {"ant/x.png": 0, "cat/x.png": 1, "cat/y.png": 1}
    assert found(tmp_path / "v") == found(tmp_path / "w") == expected


def test_links_that_lead_in_a_circle_are_reported_and_those_that_lead_nowhere_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image(tmp_path / "ant" / "x.png")
    os.symlink("..", tmp_path / "ant" / "back")
    assert found(tmp_path) == {"ant/x.png": 0}
    assert capsys.readouterr().err == (
        f"warning: '{tmp_path}': only images are read; "
        "skipped: the link 'ant/back', which leads to a folder that contains it\n"
    )
    os.symlink("/nowhere", tmp_path / "bee")
    with pytest.raises(DatasetError, match="the link 'bee' leads to '/nowhere', which does not exist"):
        find_source(str(tmp_path))


def test_images_of_every_suffix_are_read_and_the_rest_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a.png", "b.ppm", "c.gif", "d.jfif", "e.JPEG", "f.avif"]
    for name in names:
        image(tmp_path / name)
    assert sorted(found(tmp_path)) == names
    assert capsys.readouterr().err == ""
    for name in ("a.txt", "b.txt", "c.json", "._a.png", "Makefile"):
        (tmp_path / name).touch()
    assert sorted(found(tmp_path)) == names
    assert capsys.readouterr().err == (
        f"warning: '{tmp_path}': only images are read; "
        "skipped: 4 other files (2 .txt, 1 without suffix, 1 .json), such as 'Makefile'; 1 hidden\n"
    )


def test_parquet_beside_images_is_read_and_the_images_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet(tmp_path / "x.PARQUET")
    image(tmp_path / "x.png")
    assert find_source(str(tmp_path)).num_rows == 1
    assert "only Parquet files are read; skipped: 1 other file (1 .png), such as 'x.png'" in capsys.readouterr().err
    (tmp_path / "x.PARQUET").rename(tmp_path / "metadata.parquet")
    assert found(tmp_path) == {"x.png": None}
    assert "only images are read; skipped: 1 other file (1 .parquet)" in capsys.readouterr().err


def test_a_folder_that_holds_something_else_is_described(tmp_path: Path) -> None:
    (tmp_path / "x.tar").touch()
    with pytest.raises(DatasetError, match=r"neither Parquet files nor images are in it: it holds 1 file, 1 \.tar"):
        find_source(str(tmp_path))
    image(tmp_path / "x.png")
    with pytest.raises(DatasetError, match="is one image: give the URI of its folder"):
        find_source(str(tmp_path / "x.png"))


@pytest.mark.parametrize("name", ["lost+found", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "#recycle"])
def test_what_a_system_leaves_on_a_disk_is_no_class(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image(tmp_path / "ant" / "x.png")
    image(tmp_path / name / "x.png")
    (tmp_path / "found.000").mkdir()
    assert found(tmp_path) == {"ant/x.png": 0}
    assert find_source(str(tmp_path)).class_names == ["ant"]
    assert f"only images are read; skipped: 2 hidden, such as '{min(name, 'found.000')}'" in capsys.readouterr().err


def test_two_generations_of_a_dataset_are_not_read_as_one(tmp_path: Path) -> None:
    for name in ("train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"):
        parquet(tmp_path / "data" / f"{name}.parquet")
    one = "'data/train-00000-of-00001.parquet' and 'data/train-00000-of-00002.parquet', by their names of two gen"
    for card in ("", "---\nconfigs:\n- {config_name: x, data_files: [{split: train, path: data/train-*}]}\n---\n"):
        (tmp_path / "README.md").write_text(card)
        with pytest.raises(DatasetError, match=one):
            find_source(str(tmp_path))
    (tmp_path / "data" / "train-00000-of-00001.parquet").unlink()
    assert find_source(str(tmp_path)).num_rows == 2


def test_parquet_files_that_links_or_copies_repeat_are_refused(tmp_path: Path) -> None:
    parquet(tmp_path / "links" / "a" / "x.parquet")
    assert find_source(str(tmp_path / "links")).num_rows == 1
    os.symlink("a", tmp_path / "links" / "latest")
    with pytest.raises(DatasetError, match=r"has 'a/x.parquet' and 'latest/x.parquet', one file by a link: .* twice"):
        find_source(str(tmp_path / "links"))
    parquet(tmp_path / "copies" / "x.parquet")
    parquet(tmp_path / "copies" / "x (1).parquet", count=9)
    assert find_source(str(tmp_path / "copies")).num_rows == 10
    for name in ("x (1)", "x(2)", "x - Copy", "x copy 2"):
        parquet(tmp_path / "copies" / f"{name}.parquet")
        with pytest.raises(DatasetError, match=rf"has 'x.parquet' and '{re.escape(name)}.parquet', a copy of eq"):
            find_source(str(tmp_path / "copies"))
        (tmp_path / "copies" / f"{name}.parquet").unlink()
    for revision in ("0" * 40, "1" * 40):
        parquet(tmp_path / "hub" / "snapshots" / revision / "x.parquet")
    with pytest.raises(DatasetError, match=f"holds the revisions {'0' * 40} and {'1' * 40}: the same images"):
        find_source(str(tmp_path / "hub"))


def test_a_line_asks_whether_files_of_equal_name_and_size_are_copies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet(tmp_path / "x.parquet")
    parquet(tmp_path / "more" / "x.parquet", count=9)
    assert find_source(str(tmp_path)).num_rows == 10
    assert capsys.readouterr().err == ""
    parquet(tmp_path / "backup" / "x.parquet")
    assert find_source(str(tmp_path)).num_rows == 11
    asked = "'backup/x.parquet' and 'x.parquet' have the same size, and both are read: is one a copy?"
    assert capsys.readouterr().err == f"warning: '{tmp_path}': {asked}\n"


def test_images_that_links_repeat_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image(tmp_path / "ant" / "x.png")
    os.symlink("ant", tmp_path / "latest")
    assert found(tmp_path) == {"ant/x.png": 0, "latest/x.png": 1}
    again = "1 image read again by links, such as 'latest/x.png', which is 'ant/x.png'"
    assert capsys.readouterr().err == f"warning: '{tmp_path}': {again}\n"


@pytest.mark.parametrize(
    ("folders", "refused"),
    [
        (["images", "masks"], True),
        (["JPEGImages", "SegmentationClass", "SegmentationObject"], True),
        (["imgs", "ground_truth"], True),
        (["images"], False),
        (["masks", "gloves"], False),
        (["images", "masks", "gloves"], False),
    ],
)
def test_images_and_their_masks_are_no_classes(folders: list[str], refused: bool, tmp_path: Path) -> None:
    for name in folders:
        image(tmp_path / name / "x.png")
    if not refused:
        assert len(find_source(str(tmp_path)).class_names or []) == len(folders)
        return
    with pytest.raises(
        DatasetError, match=f"has '{folders[0]}' and '{folders[1]}', which are named like images and wh"
    ):
        find_source(str(tmp_path))


def test_a_class_of_images_that_are_not_read_is_no_class_left_out(tmp_path: Path) -> None:
    for name in ("train/ant/x.png", "train/bee/x.png", "test/ant/x.png"):
        image(tmp_path / name)
    (tmp_path / "train" / "cat").mkdir()
    (tmp_path / "train" / "cat" / "IMG_1.HEIC").touch()
    (tmp_path / "train" / "bee" / "IMG_2.HEIC").touch()
    assert find_source(str(tmp_path), split="test").class_names == ["ant", "bee"]
    with pytest.raises(DatasetError, match=r"subfolder 'train/cat' holds no image that is read, but 'IMG_1.HEIC'"):
        find_source(str(tmp_path), split="train")


def test_splits_of_a_folder_of_images_are_read_one_at_a_time(tmp_path: Path) -> None:
    for name in ("train/ant/x.png", "train/bee/x.png", "train/cat/x.png", "val/ant/x.png", "val/cat/x.png"):
        image(tmp_path / name)
    with pytest.raises(DatasetError, match="has the splits 'train', 'val': choose one with images_split"):
        find_source(str(tmp_path))
    assert found(tmp_path, "train") == {"train/ant/x.png": 0, "train/bee/x.png": 1, "train/cat/x.png": 2}
    # No image of a bee: still a cat is class 2.
    assert found(tmp_path, "validation") == {"val/ant/x.png": 0, "val/cat/x.png": 2}
    assert found(tmp_path / "train")["cat/x.png"] == 2
    image(tmp_path / "extra" / "ant" / "x.png")
    with pytest.raises(DatasetError, match="not deeper as in 'extra/ant'; only split folders, such as train/"):
        find_source(str(tmp_path))


def test_classes_of_a_test_folder_that_has_none_do_not_count_for_training(tmp_path: Path) -> None:
    for name in ("train/ant/x.png", "train/bee/x.png", "test/unknown/x.png"):
        image(tmp_path / name)
    assert find_source(str(tmp_path), split="train").class_names == ["ant", "bee"]


def test_splits_of_parquet_files_are_read_one_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parquet(tmp_path / "data" / "train-00000-of-00002.parquet", count=3)
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(DatasetError, match="has the splits 'test', 'train': choose one with images_split"):
        find_source(str(tmp_path))
    assert find_source(str(tmp_path), split="test").num_rows == 1
    assert capsys.readouterr().err == ""
    assert find_source(str(tmp_path), split="train").num_rows == 3
    assert "has 1 of the 2 files of 'data/train': the others are missing" in capsys.readouterr().err
    with pytest.raises(DatasetError, match="is one file, which has no splits: 'test' cannot be read"):
        find_source(str(tmp_path / "data" / "test-00000-of-00001.parquet"), split="test")


def test_configurations_are_not_read_as_one_set(tmp_path: Path) -> None:
    for name in ("alpha", "beta"):
        parquet(tmp_path / "d" / name / "test" / "0000.parquet", count=10)
        parquet(tmp_path / "plain" / name / "0000.parquet", count=10)
    for split in ("test", None):
        with pytest.raises(DatasetError, match="'test' in several folders, 'alpha' and 'beta' among them"):
            find_source(str(tmp_path / "d"), split=split)
    assert find_source(str(tmp_path / "d" / "alpha"), split="test").num_rows == 10
    assert find_source(str(tmp_path / "plain")).num_rows == 20


def test_names_that_suggest_splits_are_not_read_as_one_set(tmp_path: Path) -> None:
    for name in ("trainset", "testset"):
        parquet(tmp_path / "p" / name / "0.parquet")
        image(tmp_path / "i" / name / "x.png")
        image(tmp_path / "f" / name.replace("set", "2017") / "x.png")
    for kind in ("p", "i"):
        with pytest.raises(DatasetError, match="are named like different splits"):
            find_source(str(tmp_path / kind))
    with pytest.raises(DatasetError, match="has the splits 'test2017', 'train2017'"):
        find_source(str(tmp_path / "f"))
    assert found(tmp_path / "f", "train") == {"train2017/x.png": None}


def test_the_card_of_a_dataset_decides_its_splits_and_names(tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet", count=3)
    parquet(tmp_path / "more.parquet", count=2)
    card = tmp_path / "README.md"
    files = "data_files: [{split: fit, path: [train.parquet, more.parquet]}]"
    card.write_text(f"---\nconfigs:\n- config_name: default\n  {files}\n---\n# A dataset\n")
    assert find_source(str(tmp_path)).num_rows == find_source(str(tmp_path), split="fit").num_rows == 5
    label = "{name: label, dtype: {class_label: {names: {'0': x, '1': y}}}}"
    card.write_text(f"---\ndataset_info:\n  features:\n  - {label}\n---\n")
    (tmp_path / "more.parquet").unlink()
    with pytest.raises(
        DatasetError, match=r"its Parquet files name 2 classes, \['a', 'b'\].*README.md 2, \['x', 'y'\]"
    ):
        find_source(str(tmp_path))
    card.write_text("---\n{\n---\n")
    with pytest.raises(DatasetError, match=r"README.md' has a header that is not YAML"):
        find_source(str(tmp_path))


def test_all_files_below_the_folder_that_a_card_names_are_read_as_hugging_face_reads_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        parquet(tmp_path / "d" / name / "train.parquet", count=3)
    with pytest.raises(DatasetError, match="'train' in several folders, 'd/a' and 'd/b' among them"):
        find_source(str(tmp_path), split="train")
    (tmp_path / "README.md").write_text("---\nconfigs:\n- {config_name: default, data_dir: d}\n---\n")
    assert find_source(str(tmp_path), split="train").num_rows == 6


def test_a_card_beside_a_folder_of_images_tells_the_order_of_its_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ant/x.png", "bee/x.png"):
        image(tmp_path / name)
    card = tmp_path / "README.md"
    label = "{name: label, dtype: {class_label: {names: {'0': NAME, '1': bee, '2': ant}}}}"
    head = f"---\ndataset_info:\n  features:\n  - {label}\n---\n"
    card.write_text(head.replace("NAME", "cat"))
    assert find_source(str(tmp_path)).class_names == ["cat", "bee", "ant"]
    assert found(tmp_path) == {"ant/x.png": 2, "bee/x.png": 1}
    assert capsys.readouterr().err == ""
    card.write_text(head.replace("ant", "wasp"))
    assert found(tmp_path) == {"ant/x.png": 0, "bee/x.png": 1}
    assert "class names of its README.md are not read, because 'ant' is not among them" in capsys.readouterr().err
    card.write_text("---\nconfigs:\n- {config_name: default, data_files: x/*}\n---\n")
    assert found(tmp_path) == {"ant/x.png": 0, "bee/x.png": 1}
    assert "the configs in its README.md are ignored: an image folder has its splits in" in capsys.readouterr().err


def test_empty_image_files_are_refused(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    (tmp_path / "b.png").touch()
    with pytest.raises(DatasetError, match=r"has 1 empty image files, such as 'b\.png'"):
        find_source(str(tmp_path))


def test_folders_of_the_same_images_at_several_sizes_are_no_classes(tmp_path: Path) -> None:
    for size in (160, 320):
        image(tmp_path / "s" / "train" / f"{size}px" / "x.png")
        image(tmp_path / "t" / f"images_{size}x{size}" / "x.png")
        image(tmp_path / "u" / f"bricks 2x{size // 160}" / "x.png")
    with pytest.raises(DatasetError, match="has 'train/160px' and 'train/320px', probably the same images at several"):
        find_source(str(tmp_path / "s"))
    with pytest.raises(DatasetError, match="'images_160x160' and 'images_320x320', probably the same"):
        find_source(str(tmp_path / "t"))
    assert found(tmp_path / "s" / "train" / "160px") == {"x.png": None}
    assert find_source(str(tmp_path / "u")).class_names == ["bricks 2x1", "bricks 2x2"]
    image(tmp_path / "v" / "train" / "160px" / "x.png")
    with pytest.raises(DatasetError, match="'train/160px' is named like a size of images, not a class: give its URI"):
        find_source(str(tmp_path / "v"))


def test_files_that_git_lfs_did_not_pull_are_counted_before_any_image_is_read(tmp_path: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
    image(tmp_path / "i" / "a.png")
    parquet(tmp_path / "p" / "train-0.parquet")
    for name in ("i/b.png", "i/c.png", "p/train-1.parquet", "p/train-2.parquet"):
        (tmp_path / name).write_text(pointer)
    with pytest.raises(DatasetError, match=r"2 of 3 files are Git LFS pointers.*such as 'b\.png': run `git lfs pull`"):
        find_source(str(tmp_path / "i"))
    with pytest.raises(DatasetError, match=r"2 of 3 files are Git LFS pointers.*such as 'train-1\.parquet': run `git"):
        find_source(str(tmp_path / "p"))


def test_an_object_store_has_the_folders_that_a_marker_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    S3FileSystem.clear_instance_cache()
    try:
        store = boto3.client("s3")
        store.create_bucket(Bucket="made")
        for key in ("v/", "v/ant/", "v/ant/x.png", "v/bee/", "v/cat/x.png", "v/.git/a", "v/.git/b"):
            store.put_object(Bucket="made", Key=key, Body=b"" if key.endswith("/") else b"x")
        listing = list_tree("s3://made/v")
        assert [name for name, _ in listing.files] == ["ant/x.png", "cat/x.png"]
        assert (listing.empty_folders, listing.hidden) == ({"bee"}, [".git"])
        assert list_tree("s3://made/v/ant/x.png").files == [("", 1)]
        assert find_source("s3://made/v").class_names == ["ant", "bee", "cat"]
    finally:
        S3FileSystem.clear_instance_cache()
        server.stop()


def test_an_empty_location_is_not_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a shell variable is not set."""
    image(tmp_path / "a" / "x.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match="the location of the images is empty"):
        find_source("")
    assert find_source(".").class_names == ["a"]
