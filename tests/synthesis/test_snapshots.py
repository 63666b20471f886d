"""Looking at images while they form changes nothing of them."""

from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.outputs.names import SNAPSHOTS
from pipeline.report.page import html_page
from pipeline.synthesis.plan import plan_synthesis
from pipeline.synthesis.snapshots import write_snapshots
from pipeline.synthesis.snapshots_report import snapshots_section
from pipeline.synthesis.writer import PartWriter
from tests.report.page_check import check_page
from tests.synthesis.conftest import make_config

NAMES = [f"class {letter}" for letter in "abcdefghij"]


def write_part(teacher: Path, output: Path, *, shard_id: int = 0, **changes: Any) -> tuple[bytes, list[str]]:
    """Write a part in this process; return its bytes, and the notes for the driver."""
    plan = plan_synthesis(make_config(teacher, output, **changes))
    shard = plan.shards[shard_id]
    outcome = PartWriter(plan.config, plan.digest).write_shard(shard_id, shard["labels"], shard["image_ids"])
    (part,) = (output / "data").iterdir()
    return part.read_bytes(), outcome.notes


@pytest.mark.parametrize(
    "changes",
    [
        {"stop_steps": [2, 4], "stop_fractions": [0.3, 0.3]},
        {"stop_steps": [2, 4], "stop_fractions": [0.3, 0.3], "dtype": "bfloat16"},
        {
            "stop_steps": [],
            "stop_fractions": [],
            "adaptive_end": {"confidence": 0.2, "hold_steps": 2},
        },
    ],
)
def test_a_part_is_the_same_whether_anybody_looked(tiny_folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    inversion = {"iterations": 40, **changes}
    plain, _ = write_part(tiny_folder, tmp_path / "plain", inversion=inversion)
    watched, notes = write_part(tiny_folder, tmp_path / "watched", inversion=inversion, snapshots=2)
    assert plain == watched
    assert notes == []
    assert not (tmp_path / "plain" / SNAPSHOTS).exists()
    document = storage.read_json(str(tmp_path / "watched" / SNAPSHOTS))
    assert document["steps"][:4] == [0, 1, 5, 10]
    assert [len(pictures) for pictures in document["pictures"]] == [2] * 6
    assert document["labels"] == [0, 0]
    assert set(document["losses"]) == {"class_loss", "tv_l2"}


def test_images_that_take_no_step_are_shown_as_they_start(tiny_folder: Path, tmp_path: Path) -> None:
    inversion = {"iterations": 0, "stop_steps": [], "stop_fractions": []}
    _, notes = write_part(tiny_folder, tmp_path, inversion=inversion, snapshots=2)
    document = storage.read_json(str(tmp_path / SNAPSHOTS))
    assert (notes, document["steps"], document["losses"]) == ([], [0], {"class_loss": [], "tv_l2": []})
    section = snapshots_section("How images form", document, NAMES, 4)
    check_page(html_page("x", [section]))


def test_the_page_has_a_row_for_each_image_and_a_curve_for_each_loss(tiny_folder: Path, tmp_path: Path) -> None:
    write_part(tiny_folder, tmp_path, snapshots=3)
    document = storage.read_json(str(tmp_path / SNAPSHOTS))
    section = snapshots_section("How images form", document, NAMES, 4)
    page = check_page(html_page("x", [section]))
    steps = document["steps"]
    assert len(page.sources) == 3 * len(steps)
    assert page.tags.count("polyline") == len(document["losses"])
    # At the start all 16 patches are alive, and nothing is outlined.
    assert [bool(tile.outline) for tile in section.tiles[: len(steps)]] == [step > 2 for step in steps]
    assert [len(kept[0]) for kept in document["kept"]][-1] == 7


def test_only_the_first_part_is_watched(tiny_folder: Path, tmp_path: Path) -> None:
    write_part(tiny_folder, tmp_path, shard_id=1, snapshots=2)
    assert not (tmp_path / SNAPSHOTS).exists()


def test_what_cannot_be_written_is_a_note_for_the_driver(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    note = write_snapshots(str(tmp_path / "file"), {"steps": []})
    assert note is not None
    assert "was not written" in note
    assert "\n" not in note


def test_more_snapshots_than_fit_into_a_page_are_refused(tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match="snapshots must lie in"):
        make_config(tiny_folder, "unused", snapshots=7)


def test_looking_has_no_part_in_the_digest(tiny_folder: Path, tmp_path: Path) -> None:
    digests = [plan_synthesis(make_config(tiny_folder, tmp_path, snapshots=count)).digest for count in (0, 4)]
    assert len(set(digests)) == 1
