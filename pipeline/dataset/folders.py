"""Find the classes of an image folder."""

import posixpath
import re
from collections.abc import Collection, Iterable, Sequence

from pipeline.dataset.classes import order_classes
from pipeline.dataset.image_sizes import check_no_size_folders
from pipeline.errors import DatasetError

# Formats of images that are not read.
_UNREAD_FORMATS = (
    *(".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
    *(".psd", ".exr", ".hdr", ".tga", ".dcm"),
)
_IMAGES = re.compile(r"images?|imgs?|jpegimages|pictures|photos|rgb|leftimg8bit", re.IGNORECASE)
_MASKS = re.compile(
    r"masks?|labels?|annotations?|segmentations?(class|object)?|gt|gtfine|ground[-_ ]?truths?|trimaps?|depth|edges",
    re.IGNORECASE,
)


def check_folders(uri: str, root: str, images: Sequence[str]) -> None:
    """Check that images lie either all in class subfolders of `root` or all directly in `root`.

    Raises:
        DatasetError: images lie beside class subfolders, or deeper than in one, or the subfolders are named like sizes
            of images, or like images and their masks.
    """
    folders = {class_folder(root, name) for name in images}
    if "" in folders and len(folders) > 1:
        stray = next(name for name in images if class_folder(root, name) == "")
        raise DatasetError(f"{uri!r} has class subfolders and, beside them, the image {stray!r}")
    nested = sorted(folder for folder in folders if "/" in folder)
    if nested:
        raise DatasetError(
            f"{uri!r}: images must lie in class subfolders, not deeper as in {posixpath.join(root, nested[0])!r}; "
            "only split folders, such as train/ and test/, may lie above the class subfolders"
        )
    classes = sorted(posixpath.join(root, folder) for folder in folders if folder)
    check_no_size_folders(uri, classes)
    _check_no_masks(uri, classes)


def _check_no_masks(uri: str, classes: Sequence[str]) -> None:
    """Refuse folders that are all named like images and what belongs to each of them: `images` and `masks`."""
    images = [name for name in classes if _IMAGES.fullmatch(posixpath.basename(name))]
    masks = [name for name in classes if _MASKS.fullmatch(posixpath.basename(name))]
    if images and masks and len(images) + len(masks) == len(classes):
        raise DatasetError(
            f"{uri!r} has {images[0]!r} and {masks[0]!r}, which are named like images and what belongs to each, not "
            f"like classes: give the URI of {images[0]!r}"
        )


def check_all_read(uri: str, root: str, images: Sequence[str], names: Iterable[str]) -> None:
    """Refuse a class subfolder whose images all have a format that is not read: its class would have no image.

    Args:
        uri: location of the image folder, for messages.
        root: folder of the class subfolders, below `uri`.
        images: names of the images that are read.
        names: names of all files below `uri`.

    Raises:
        DatasetError: there is such a subfolder.
    """
    read = {class_folder(root, name) for name in images}
    if "" in read:
        return
    inside = (name for name in names if not root or name.startswith(f"{root}/"))
    for name in (name for name in inside if name.lower().endswith(_UNREAD_FORMATS)):
        folder = class_folder(root, name)
        if _is_class(folder) and folder not in read:
            raise DatasetError(
                f"{uri!r}: the class subfolder {posixpath.join(root, folder)!r} holds no image that is read, but "
                f"{posixpath.basename(name)!r}: save its images in a format of docs/images.md"
            )


def _is_class(folder: str) -> bool:
    return bool(folder) and "/" not in folder


def find_classes(uri: str, root: str, roots: Iterable[str], images: Sequence[str], empty: Collection[str]) -> list[str]:
    """Return the classes of an image folder in the order of their labels; empty if it has no subfolders.

    Every class subfolder counts, even without an image. If the folder of another split has all of them and more, the
    additional ones count too, so that a class without a test image does not shift the labels.

    Args:
        uri: location of the image folder, for messages.
        root: folder of the class subfolders, below `uri`; `""` for `uri` itself.
        roots: folders of class subfolders of all splits.
        images: names of all images below `uri`.
        empty: names of folders below `uri` that hold no file.

    Raises:
        DatasetError: two folder names are the same number.
    """
    found = {split: _classes_in(split, images, empty) for split in roots}
    own = found[root]
    if not _classes_in(root, images, ()):
        return []
    names = max((classes for classes in found.values() if classes >= own), key=len)
    try:
        return order_classes(names)
    except DatasetError as error:
        raise DatasetError(f"{uri!r}: {error}") from error


def class_folder(root: str, name: str) -> str:
    """Return the class subfolder of an image, given its name below the location; `""` if it lies in none."""
    return posixpath.dirname(name.removeprefix(f"{root}/") if root else name)


def _classes_in(root: str, images: Sequence[str], empty: Collection[str]) -> set[str]:
    prefix = f"{root}/" if root else ""
    folders = [posixpath.dirname(name) for name in images] + list(empty)
    below = {folder.removeprefix(prefix) for folder in folders if folder.startswith(prefix)}
    return set(filter(_is_class, below))
