"""The card of a synthetic dataset is one that Hugging Face's own libraries understand."""

import datasets
import pytest
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from pipeline.dataset import schema
from pipeline.dataset.own_card import dataset_card, size_category
from tests.conftest import make_manifest

NAMES = ["no", "'quoted': \"twice\"", "- a\nb", "<b>ö</b> 🦆", "{}", "10"]


@pytest.fixture(scope="module")
def card() -> DatasetCard:
    manifest = make_manifest("d" * 64, class_names=NAMES, teacher={"name": "local-dir:/home/me/secret/vit"})
    return DatasetCard(dataset_card(manifest))


def test_the_hubs_fields_are_filled_in(card: DatasetCard) -> None:
    fields = card.data.to_dict()
    assert fields["license"] == "unknown"
    assert fields["task_categories"] == ["image-classification"]
    assert fields["size_categories"] == ["n<1K"]
    assert fields["annotations_creators"] == ["machine-generated"]
    assert fields["pretty_name"] == "Images inverted from vit"
    assert "synthetic" in fields["tags"]


def test_features_and_files_are_what_the_parts_hold(card: DatasetCard) -> None:
    header = DatasetCardData(**card.data.to_dict())
    features = DatasetInfosDict.from_dataset_card_data(header)["default"].features
    assert features is not None
    assert list(features) == list(schema.COLUMNS)
    assert features["image"] == datasets.Image()
    assert features["label"].names == NAMES
    config = MetadataConfigs.from_dataset_card_data(header)["default"]
    assert config["data_files"] == [{"split": "train", "path": "data/*.parquet"}]


def test_folders_of_the_maker_stay_private(card: DatasetCard) -> None:
    assert "/home/me" not in str(card)
    assert "# Images inverted from vit" in card.text


@pytest.mark.parametrize(
    ("count", "name"),
    [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (50_000, "10K<n<100K"), (10**6, "1M<n<10M"), (10**12, "1B<n<10B")],
)
def test_size_categories_are_the_hubs(count: int, name: str) -> None:
    assert size_category(count) == name
