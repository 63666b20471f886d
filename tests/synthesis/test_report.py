"""The page of a dataset that is large, unfinished, or cannot be read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.dataset import schema, store
from pipeline.dataset.index import index_table, write_index
from pipeline.dataset.sample import evenly
from pipeline.models import ModelConfig
from pipeline.synthesis import SynthesisConfig
from pipeline.synthesis.plan import SynthesisPlan
from pipeline.synthesis.report import write_pictures
from pipeline.synthesis.shards import ShardPlan
from tests.conftest import make_manifest
from tests.report.page_check import Page, check_page

DIGEST = "d" * 64
NAMES = [f"<b>class {label}</b> with a long name that says more than anyone needs" for label in range(120)]
SUMMARY: dict[str, Any] = {
    **{"complete": False, "num_done": 3, "num_shards": 4, "num_images": 360, "num_images_made": 270},
    **{"num_retried": 0, "class_loss": None, "teacher_confidence": None},
    **{"num_failed": 1, "failed": [{"shard_id": 3, "reason": "<i>NaN</i>"}]},
}


def make_plan(output: Path) -> SynthesisPlan:
    """Four shards of 90 images of 224 × 224 pixels, three of each of 30 classes."""
    shards = ShardPlan(range(120), 3, 90)
    # Of an earlier version, which recorded less.
    manifest = make_manifest(DIGEST, class_names=NAMES, image_size=[3, 224, 224])
    teacher = ModelConfig(name="tiny", checkpoint="https://user:password@host/weights.pth?signature=secret")
    config = SynthesisConfig(teacher=teacher, output=str(output), images_per_class=3)
    return SynthesisPlan(config, DIGEST, manifest, shards, 196, None, store.Progress({}, {}, []))


def write_parts(plan: SynthesisPlan, shard_ids: list[int]) -> None:
    """Parts of noise, which compresses worst; the teacher takes every image for the class after its own."""
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    code = {"bytes": schema.encode_image(noise), "path": "x.png"}
    for shard_id in shard_ids:
        shard = plan.shards[shard_id]
        count = len(shard["labels"])
        columns = {
            "image": [code] * count,
            "label": shard["labels"],
            "keep_indices": [[0, 15, 16, 195]] * count,
            "image_id": shard["image_ids"],
            "shard_id": [shard_id] * count,
            "class_loss": [float("nan")] * count,
            "teacher_confidence": [0.25] * count,
            "teacher_prediction": [(label + 1) % 120 for label in shard["labels"]],
        }
        table = pa.table(columns, schema=schema.part_schema(NAMES, shard_id))
        store.write_part(plan.config.output, shard_id, DIGEST, schema.to_parquet(table))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    output = tmp_path_factory.mktemp("large")
    plan = make_plan(output)
    write_parts(plan, [0, 1, 2])
    assert write_pictures(plan, SUMMARY, [0, 1, 2]) == {
        "contact_sheet": f"{output}/contact_sheet.png",
        "report": f"{output}/report.html",
    }
    return check_page((output / "report.html").read_text())


def test_a_large_dataset_is_sampled_to_a_bounded_page_that_says_so(page: Page) -> None:
    # Some of the contact sheet's 96, and eight pairs.
    assert len(page.sources) == 20 + 16
    assert any(text.startswith("20 of 270 images, evenly from the classes") for text in page.texts)
    assert any("among 270 images of 3 of the parts" in text for text in page.texts)
    assert any("the 30 lowest of 90 classes" in text for text in page.texts)


def test_what_is_left_undone_and_why_is_on_the_page(page: Page) -> None:
    assert "no: run it again for the rest" in page.texts
    assert "3 of 4" in page.texts
    assert "<i>NaN</i>" in page.texts


def test_class_names_are_text_and_credentials_are_left_out(page: Page) -> None:
    assert any(text.startswith("<b>class 7</b>") for text in page.texts)
    assert "https://…@host/weights.pth?signature=…" in page.texts


def test_before_the_first_part_there_is_a_page_and_no_contact_sheet(tmp_path: Path) -> None:
    written = write_pictures(make_plan(tmp_path), SUMMARY, [])
    assert written == {"contact_sheet": None, "report": f"{tmp_path}/report.html"}
    assert check_page((tmp_path / "report.html").read_text()).sources == []


def test_a_part_that_cannot_be_read_costs_the_pictures_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / store.part_name(0, DIGEST)).write_bytes(b"not Parquet")
    assert write_pictures(plan, SUMMARY, [0]) == {"contact_sheet": None, "report": None}
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("warning: ") and "cannot read" in line for line in lines] == [True, True]


def test_parts_are_spread_evenly() -> None:
    assert evenly(range(1000), 4) == [0, 250, 500, 750]
    assert evenly([3, 5], 4) == [3, 5]


def test_means_are_of_all_parts_even_if_this_run_made_none(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    write_parts(plan, [0, 1])
    rows = [
        {"shard_id": part, "num_rows": images, "class_loss": loss, "teacher_confidence": 0.5}
        for part, images, loss in ((0, 90, 0.5), (1, 30, 1.5))
    ]
    write_index(str(tmp_path), DIGEST, index_table(rows))
    write_pictures(plan, SUMMARY | {"num_images_made": 0}, [0, 1])
    texts = check_page((tmp_path / "report.html").read_text()).texts
    assert texts[texts.index("mean class loss of all images") + 1].startswith("0.75")
    assert texts[texts.index("mean confidence of the teacher of all images") + 1].startswith("0.5")


def test_of_one_image_per_class_and_of_a_run_that_made_none_nothing_is_drawn_or_averaged(tmp_path: Path) -> None:
    plan = replace(make_plan(tmp_path), shards=ShardPlan(range(120), 1, 30))
    write_parts(plan, [0])
    write_pictures(plan, SUMMARY | {"num_images_made": 0}, [0])
    texts = check_page((tmp_path / "report.html").read_text()).texts
    assert "images made by this run" in texts
    assert not {"How much they differ", "mean class loss of all images"} & set(texts)
