import json
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import storage
from pipeline.compaction import CompactionConfig
from pipeline.compaction.plan import group_parts, plan_compaction
from pipeline.dataset import schema, store
from pipeline.errors import ConfigError, DatasetError
from tests.compaction.conftest import DIGEST, index_dataset, make_config, make_dataset, write_part


@pytest.mark.parametrize(
    ("sizes", "files"),
    [
        ({}, []),
        ({0: 9}, [[0]]),
        # A part that is larger than a file is one by itself; what is equal to it fits.
        ({0: 4, 1: 11, 2: 6, 3: 4}, [[0], [1], [2, 3]]),
        ({0: 5, 1: 5, 2: 5}, [[0, 1], [2]]),
        # A missing shard ends a file, for its name states all shards from the first to the last.
        ({2: 1, 3: 1, 5: 1, 6: 1, 9: 1}, [[2, 3], [5, 6], [9]]),
    ],
)
def test_parts_are_grouped_in_order_as_long_as_they_fit(sizes: dict[int, int], files: list[list[int]]) -> None:
    assert [list(shard_ids) for shard_ids in group_parts(sizes, 10)] == files


def test_the_plan_says_what_the_dataset_holds_and_leaves_it_as_it_is(dataset: str, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(dataset).rglob("*")}
    plan = plan_compaction(make_config(dataset, tmp_path / "compact"))
    assert [list(shard_ids) for shard_ids in plan.files] == [[0, 1], [2, 3], [4, 5], [6]]
    assert {path: path.stat().st_mtime_ns for path in Path(dataset).rglob("*")} == before
    assert not (tmp_path / "compact").exists()
    facts = plan.manifest["compaction"]
    assert (facts["file_bytes"], facts["num_files"], facts["num_parts"]) == (40_000, 4, 7)
    assert {name: value for name, value in plan.manifest.items() if name != "compaction"} == store.read_manifest(
        dataset
    )


def test_credentials_of_an_earlier_version_are_not_copied(dataset: str, tmp_path: Path) -> None:
    manifest = store.read_manifest(dataset)
    store.write_manifest(dataset, {**manifest, "config": {"output": "s3://KEY:SECRET@bucket/x"}})
    assert "SECRET" not in json.dumps(plan_compaction(make_config(dataset, tmp_path / "compact")).manifest)


def test_what_is_no_synthetic_dataset_is_refused(tmp_path: Path) -> None:
    reasons = {tmp_path: "only the output of jobs.synthesize", tmp_path / "nowhere": "there is no such file or folder"}
    for images, reason in reasons.items():
        with pytest.raises(DatasetError, match=f"'{images}' is no synthetic dataset: {reason}"):
            plan_compaction(make_config(str(images), f"{tmp_path}-compact"))


def test_a_compacted_dataset_is_refused(dataset: str, tmp_path: Path) -> None:
    store.write_manifest(dataset, plan_compaction(make_config(dataset, tmp_path / "compact")).manifest)
    with pytest.raises(DatasetError, match="is compacted already: compact the dataset that it was made from"):
        plan_compaction(make_config(dataset, tmp_path / "compact"))


@pytest.mark.parametrize("output", ["{}", "{}/", "{}/compact", "{}/..", "{}/data", "file://{}"])
def test_output_and_images_that_lie_in_each_other_are_refused(output: str, dataset: str) -> None:
    with pytest.raises(ConfigError, match="lie in each other: give the output a folder of its own"):
        plan_compaction(make_config(dataset, output.format(dataset)))


def test_a_folder_whose_name_begins_with_that_of_the_images_is_another(dataset: str) -> None:
    assert plan_compaction(make_config(dataset, f"{dataset}-compact")).files


def test_what_only_this_process_sees_is_refused(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is in the memory of this process"):
        plan_compaction(make_config(dataset, "memory://compact"))
    with pytest.raises(ConfigError, match="are in the memory of this process"):
        plan_compaction(make_config("memory://dataset", tmp_path / "compact"))


def test_an_incomplete_dataset_is_refused_unless_that_is_wished(tmp_path: Path) -> None:
    dataset = make_dataset(str(tmp_path / "dataset"), without=(2, 5))
    with pytest.raises(DatasetError, match="incomplete: it holds 5 of 7 shards; run its synthesis again, or set allow"):
        plan_compaction(make_config(dataset, tmp_path / "compact"))
    plan = plan_compaction(make_config(dataset, tmp_path / "compact", allow_incomplete=True))
    assert ([list(shard_ids) for shard_ids in plan.files], plan.num_missing) == ([[0, 1], [3, 4], [6]], 2)
    for part in Path(dataset, "data").iterdir():
        part.unlink()
    with pytest.raises(DatasetError, match="has no parts yet"):
        plan_compaction(make_config(dataset, tmp_path / "compact", allow_incomplete=True))


def test_a_damaged_part_is_named(dataset: str, tmp_path: Path) -> None:
    part = Path(store.part_uri(dataset, 3, DIGEST))
    part.write_bytes(part.read_bytes()[:-7])
    with pytest.raises(DatasetError, match=r"shard 3 has a damaged part, delete it .*part-00003-01234567.parquet"):
        plan_compaction(make_config(dataset, tmp_path / "compact"))
    part.write_bytes(schema.to_parquet(pa.table({"label": [1, 2]})))
    with pytest.raises(DatasetError, match=r"shard 3 has a damaged part, .* names another shard or none"):
        plan_compaction(make_config(dataset, tmp_path / "compact"))


def test_an_output_of_another_compaction_is_refused(dataset: str, tmp_path: Path) -> None:
    output = str(tmp_path / "compact")
    store.write_manifest(output, plan_compaction(make_config(dataset, output)).manifest)
    plan_compaction(make_config(dataset, output))
    with pytest.raises(DatasetError, match=r"with other settings: file_mb \(in bytes\) is 40000 there, 50000 here"):
        plan_compaction(make_config(dataset, output, file_mb=0.05))
    write_part(dataset, 1, side=24)
    index_dataset(dataset)
    with pytest.raises(DatasetError, match=r"made with other settings: .*digest of images is"):
        plan_compaction(make_config(dataset, output))


def test_an_output_of_another_job_or_with_other_files_is_refused(dataset: str, tmp_path: Path) -> None:
    other = make_dataset(str(tmp_path / "other"))
    with pytest.raises(DatasetError, match="holds a synthetic dataset: compact needs a folder of its own"):
        plan_compaction(make_config(dataset, other))
    storage.write_json(str(tmp_path / "calibration" / "config.json"), {"job": "calibrate"})
    with pytest.raises(DatasetError, match="holds a calibration: compact needs a folder of its own"):
        plan_compaction(make_config(dataset, tmp_path / "calibration"))
    write_part(str(tmp_path / "parts"), 1)
    with pytest.raises(DatasetError, match="which is not of this compaction: empty it first"):
        plan_compaction(make_config(dataset, tmp_path / "parts"))
    storage.write_bytes(str(tmp_path / "mixed" / "data" / "cat.png"), b"")
    with pytest.raises(DatasetError, match=r"holds a file that is not a part: 'cat.png'"):
        plan_compaction(make_config(dataset, tmp_path / "mixed"))


@pytest.mark.parametrize("changes", [{"file_mb": 0}, {"file_mb": float("nan")}, {"images": ""}, {"output": ""}])
def test_impossible_settings_are_refused(changes: dict[str, object]) -> None:
    (name,) = changes
    with pytest.raises(ConfigError, match=name):
        CompactionConfig(**{"images": "a", "output": "b", **changes})  # type: ignore[arg-type]
