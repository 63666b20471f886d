"""Write the Hugging Face dataset card of a synthetic dataset, so that its folder can be pushed to the hub as it is.

Fields: https://github.com/huggingface/hub-docs/blob/main/datasetcard.md
"""

from collections.abc import Mapping
from typing import Any

import yaml

from pipeline import storage
from pipeline.dataset import schema
from pipeline.dataset.card import CARD

# Smallest number of images of each size category after the first, and its name on the hub.
_SIZES = (
    *((10**3, "1K<n<10K"), (10**4, "10K<n<100K"), (10**5, "100K<n<1M"), (10**6, "1M<n<10M"), (10**7, "10M<n<100M")),
    *((10**8, "100M<n<1B"), (10**9, "1B<n<10B")),
)
_LINE_ENDS = "\x85\u2028\u2029"
_BODY = """
# Images inverted from {teacher}

{num_images} synthetic images of {size}, of {num_classes} classes, in {files} under `data/`. They
were made by optimizing pixels so that a trained classifier, {teacher}, assigns each image its class (sparse model
inversion, [arXiv 2510.27186](https://arxiv.org/abs/2510.27186)). `manifest.json` says how they were made, `report.html`
shows them.
Digest of the dataset: `{digest}`.

```python
datasets.load_dataset("FOLDER")
```

| column | |
| --- | --- |
| `image` | a PNG; patches that were stopped have the teacher's mean color |
| `label` | the class that the image was inverted for |
| `keep_indices` | patches that were kept, row by row; all of them if the image is dense |
| `image_id`, `shard_id` | of the image, and of the part that it is in |
| `class_loss`, `teacher_confidence`, `teacher_prediction` | what the teacher says of the stored image |

## Uses

The images show what the teacher responds to. Use them to quantize it and to train smaller models from it. They
are no sample of the classes: score a model that was trained on them on real images.

## License

None is stated (`license: unknown`). Which terms apply depends on those of the teacher and of its training images. Set
`license` before you publish the dataset.

## Privacy

No image was copied into this dataset, and yet the teacher learned from real ones, and what it memorized can come out of
an inversion. Anyone who has the training images can measure how near these images come to them, and how near to
others of the same kind. Images that are no nearer to the training images do not repeat them; that does not prove that
nothing about a person can be learned from the teacher or from these images.
"""


def write_card(output: str, manifest: Mapping[str, Any]) -> None:
    """Write the card of a dataset, unless there is a README already or the parts hold all facts themselves.

    Args:
        output: folder of the dataset.
        manifest: manifest of the dataset. With version 1 of the contract the parts hold all facts, and there is no
            card.

    Raises:
        OSError: it could not be written.
    """
    uri = storage.join(output, CARD)
    if manifest["schema_version"] > 1 and not storage.exists(uri):
        storage.write_bytes(uri, dataset_card(manifest).encode())


def dataset_card(manifest: Mapping[str, Any]) -> str:
    """Return a Markdown page whose YAML header describes the dataset to the hub and to `datasets.load_dataset`."""
    channels, height, width = manifest["image_size"]
    teacher = _teacher_name(manifest["teacher"]["name"])
    header = {
        "pretty_name": f"Images inverted from {teacher}",
        "license": "unknown",
        "annotations_creators": ["machine-generated"],
        "task_categories": ["image-classification"],
        "size_categories": [size_category(manifest["num_images"])],
        "tags": ["synthetic", "model-inversion", "data-free"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
        "dataset_info": {"features": schema.card_features(manifest["class_names"])},
    }
    # PyYAML would write such characters as line ends inside of names, and YAML reads those as spaces.
    has_breaks = any(mark in name for name in manifest["class_names"] for mark in _LINE_ENDS)
    # A huge width, so that no name is folded over two lines.
    text = yaml.safe_dump(header, sort_keys=False, allow_unicode=not has_breaks, width=2**31)
    facts = {name: manifest[name] for name in ("num_images", "digest")} | {"files": _files(manifest["num_shards"])}
    size = f"{height}x{width} pixels with {channels} channel{'s' if channels > 1 else ''}"
    num_classes = manifest.get("num_classes", len(manifest["class_names"]))
    return f"---\n{text}---\n{_BODY.format(teacher=teacher, size=size, num_classes=num_classes, **facts)}"


def card_of_merged(card: str, num_shards: int, num_files: int) -> str:
    """Return a card, which may have been edited, for the same dataset in fewer files."""
    return card.replace(_files(num_shards), _files(num_files), 1)


def _files(count: int) -> str:
    return f"{count} Parquet file{'' if count == 1 else 's'}"


def size_category(num_images: int) -> str:
    """Return the hub's name for a dataset of so many images."""
    return next((name for least, name in reversed(_SIZES) if num_images >= least), "n<1K")


def _teacher_name(name: str) -> str:
    """Return a model's name on one line, without the folders above it, which are nobody's business on a hub."""
    return " ".join((name.rstrip("/").rpartition("/")[2] or name).split())
