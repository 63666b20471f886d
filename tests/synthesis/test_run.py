"""The run on a real Ray cluster."""

import errno
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import ray.data
from PIL import Image

from pipeline import storage
from pipeline.cluster import own_errors, start_here
from pipeline.dataset import read_images, schema, store
from pipeline.dataset.discovery import find_source
from pipeline.errors import ConfigError, DatasetError, IncompleteError, ModelError, PipelineError
from pipeline.models import save_model
from pipeline.synthesis import Inverter, build_inverter, plan_shards, synthesize
from pipeline.synthesis.attempts import Attempts
from pipeline.synthesis.indexing import RunningIndex
from pipeline.synthesis.outcome import Outcome
from pipeline.synthesis.passes import _check_workers_left
from pipeline.synthesis.plan import plan_synthesis
from pipeline.synthesis.pool import pool_options
from pipeline.synthesis.run import _counted, _finish
from pipeline.synthesis.summary import reasons_of_lost
from pipeline.synthesis.tally import Tally
from pipeline.synthesis.writer import PartWriter
from tests.conftest import HALF, make_tiny_model
from tests.report.page_check import check_page
from tests.synthesis.conftest import Made, make_config, parts_of
from tests.synthesis.test_actor import nan_teacher

pytestmark = pytest.mark.usefixtures("ray_session")


def test_dataset_is_whole(made: Made) -> None:
    assert made.summary["complete"] is True
    assert made.summary["num_done"] == made.summary["num_shards"] == 6
    assert made.summary["num_images"] == made.summary["num_images_made"] == 30
    assert sorted(made.parts) == [f"data/part-{shard:05d}-{made.summary['digest'][:8]}.parquet" for shard in range(6)]
    assert sorted(path.name for path in made.output.iterdir()) == [
        "README.md",
        "contact_sheet.png",
        "data",
        "index.parquet",
        "manifest.json",
        "report.html",
    ]
    table = pq.read_table(made.output / "data")
    assert table.num_rows == 30
    assert len(set(table["image_id"].to_pylist())) == 30
    assert Image.open(made.output / "contact_sheet.png").width > 100


def test_the_page_shows_images_with_their_kept_patches_and_what_the_teacher_says(made: Made) -> None:
    assert made.summary["report"] == str(made.output / "report.html")
    page = (made.output / "report.html").read_text()
    read = check_page(page)
    # All images, and both of each of the eight closest pairs; every image is sparse.
    assert len(read.sources) == 30 + 16
    assert read.tags.count("path") == 30
    assert "7.0 of 16 patches are kept on average: 30 images, of 6 of 6 parts." in read.texts
    assert any(re.search(r"of 30 images \(.*%\) are taken for their class", text) for text in read.texts)
    assert "inversion.iterations" in read.texts
    assert str(made.output) in read.texts


def test_manifest_says_what_was_made(made: Made) -> None:
    manifest = store.read_manifest(str(made.output))
    assert manifest["digest"] == made.summary["digest"]
    assert (manifest["num_shards"], manifest["num_images"]) == (6, 30)
    assert manifest["class_names"][3] == "class d"
    assert manifest["config"]["inversion"]["iterations"] == 8
    assert len(manifest["teacher"]["weights_sha256"]) == 64
    assert {"torch", "timm", "ray", "pyarrow"} <= manifest["versions"].keys()


def test_actors_are_pinned_to_a_logical_gpu_each(made: Made) -> None:
    """That both of two work, if there is enough to do, is a test of `test_faults`."""
    workers = made.summary["workers"]
    assert sum(workers.values()) == 6
    assert {name.rpartition("gpu ")[2] for name in workers} <= {"0", "1"}
    assert len({name.rpartition("gpu ")[2] for name in workers}) == len(workers)


def test_opens_in_hugging_face_datasets(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    loaded = datasets.load_dataset(str(made.output / "data"), cache_dir=str(tmp_path))["train"]
    assert loaded.features["image"] == datasets.Image()
    assert loaded.features["label"].names[:2] == ["class a", "class b"]
    assert loaded[29]["image"].size == (32, 32)
    assert loaded[29]["label"] == 9


def test_opens_in_pandas(made: Made) -> None:
    frame = pandas.read_parquet(made.output / "data")
    assert list(frame.columns) == list(schema.COLUMNS)
    assert frame["label"].value_counts().to_dict() == dict.fromkeys(range(10), 3)


def test_read_back_on_ray(made: Made) -> None:
    row = read_images(str(made.output)).take(1)[0]
    assert row["image"].shape == (32, 32, 3)
    assert len(row["keep_indices"]) == 7


def test_composes_with_any_pipeline_and_writes_nothing(made: Made) -> None:
    expected = pq.read_table(made.output / "data").sort_by("image_id")
    before = parts_of(made.output)
    rows = ray.data.from_items(plan_shards(made.config), override_num_blocks=2)
    dataset = rows.map_batches(
        Inverter,
        fn_constructor_args=(made.config,),
        batch_size=2,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
    )
    check_same(pandas.DataFrame(dataset.take_all()), expected)
    # What an actor would be handed in the other formats, without the start of an actor for each.
    inverter = Inverter(made.config)
    for batch_format in ("pandas", "pyarrow"):
        batches = rows.iter_batches(batch_size=2, batch_format=batch_format)
        tables = [table for batch in batches for table in inverter(batch)]
        check_same(pandas.DataFrame(pa.concat_tables(tables).to_pylist()), expected)
    assert parts_of(made.output) == before


def check_same(got: pandas.DataFrame, expected: pa.Table) -> None:
    got = got.sort_values("image_id")
    for name in ("image", "label", "shard_id", "class_loss", "teacher_prediction"):
        assert list(got[name]) == expected[name].to_pylist()
    assert [list(kept) for kept in got["keep_indices"]] == expected["keep_indices"].to_pylist()


@pytest.mark.parametrize("as_list", [True, False])
def test_a_stage_of_ones_own_pipeline(
    made: Made, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, as_list: bool
) -> None:
    """A stage takes paths as the driver sees them, one block of all shards, and columns of one's own."""
    monkeypatch.chdir(tiny_folder.parent)
    config = make_config(Path(tiny_folder.name), "unused")
    shards = [{**shard, "run": 7, "place": list(range(len(shard["labels"])))} for shard in plan_shards(config)]
    images = build_inverter(config)(shards if as_list else ray.data.from_items(shards, override_num_blocks=1))
    with own_errors():
        got = pandas.DataFrame(images.take_all())
    check_same(got, pq.read_table(made.output / "data").sort_by("image_id"))
    assert set(got["run"]) == {7}
    assert list(got.sort_values("image_id")["place"]) == [0, 1, 2, 3, 4] * 6


# In one row each: what is missing, whole numbers beside floats, and a column that others do not have.
VARIED = (
    {"note": None, "x": 1, "tags": [None], "place": {"row": 1}, "boxes": np.zeros((1, 2))},
    {"note": "y", "x": 2.5, "tags": ["t"], "place": {"row": 1.5}, "boxes": np.ones((1, 3))},
    {"note": "z", "x": 3, "tags": None, "place": {"column": 2}, "only": [7]},
)


@pytest.mark.parametrize("as_list", [True, False])
def test_a_further_column_has_one_type_in_all_files(tiny_folder: Path, tmp_path: Path, as_list: bool) -> None:
    ids = [{"shard_id": shard, "labels": range(shard, shard + 1), "image_ids": [f"i{shard}"]} for shard in range(3)]
    rows = [row | varied for row, varied in zip(ids, VARIED, strict=True)]
    blocks = None if as_list else [ray.data.from_items([{**row, "labels": [row["shard_id"]]}]) for row in rows]
    images = build_inverter(make_config(tiny_folder, "unused"))(
        rows if blocks is None else blocks[0].union(*blocks[1:])
    )
    images.write_parquet(str(tmp_path))
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    assert len({str(pq.read_schema(file).remove_metadata()) for file in files}) == 1
    got = pq.read_table(tmp_path).sort_by("shard_id").select([*VARIED[0], "only"]).to_pydict()
    assert got == {
        "note": [None, "y", "z"],
        "x": [1.0, 2.5, 3.0],
        "tags": [None, "t", None],
        "place": [{"row": 1.0, "column": None}, {"row": 1.5, "column": None}, {"row": None, "column": 2}],
        "boxes": [[0.0, 0.0], [1.0, 1.0, 1.0], None],
        "only": [None, None, 7],
    }


def test_impossible_rows_of_a_stage_are_one_typed_line(tiny_folder: Path) -> None:
    rows = [{"shard_id": 0, "labels": [0, 99], "image_ids": ["a", "b"]}]
    other = {"shard_id": 1, "labels": [0], "image_ids": ["c"]}
    stage = build_inverter(make_config(tiny_folder, "unused"))
    with pytest.raises(DatasetError, match=r"^shard 0 has the label 99: .* has 10 classes$"), own_errors():
        stage(ray.data.from_items(rows)).take_all()

    def apart(*rows: dict[str, Any]) -> ray.data.Dataset:
        """Return rows in a block each."""
        return ray.data.from_items(list(rows), override_num_blocks=max(1, len(rows)))

    for made_of in (list[Any], lambda rows: apart(*rows)):
        with pytest.raises(DatasetError, match=r"^shard_id 0 comes more than once"), own_errors():
            stage(made_of([{**rows[0], "image_ids": [name, f"{name}2"]} for name in "ab"]))
        with pytest.raises(DatasetError, match=r"^shard_id 0 comes more than once"), own_errors():
            stage(made_of([*rows, *rows]))
        with pytest.raises(DatasetError, match=r"^image id 'c' is in the shards 1 and 2"), own_errors():
            stage(made_of([other, {**other, "shard_id": 2}]))
        with pytest.raises(DatasetError, match=r"'labels' is not in \['shard_id', 'image_ids'\]"), own_errors():
            stage(made_of([{"shard_id": 0, "image_ids": ["a"]}]))
        with (
            pytest.raises(DatasetError, match=r"values have no common type: .*$"),
            own_errors(),
        ):
            stage(made_of([{**other, "x": 1}, {"shard_id": 2, "labels": [0], "image_ids": ["d"], "x": "y"}]))
        with pytest.raises(DatasetError, match="no shards"):
            stage(made_of([]))


def test_only_what_is_missing_is_done_and_what_fails_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pool of one on the CPU takes up what a single process of an earlier version, whose parts had other metadata,
    left; class 4 cannot be made at all."""
    output = tmp_path / "out"
    config = make_config(nan_teacher(tmp_path / "teacher"), output, pool={"device": "cpu"})
    plan = plan_synthesis(config)
    writer = PartWriter(config, plan.digest, 1)
    for shard in plan.shards:
        writer.write_shard(**shard)
    undisturbed = parts_of(output)
    store.write_manifest(str(output), {**plan.manifest, "schema_version": 1})
    gone = output / "data" / store.part_name(4, plan.digest)
    gone.unlink()
    # What earlier runs leave: a failure of a shard that was done since, one of a shard that is to be done, half a file.
    for shard_id in (0, 4):
        store.write_failure(str(output), shard_id, {"reason": "an earlier try"})
    (output / ".tmp").mkdir(exist_ok=True)
    (output / ".tmp" / ".part-00004.parquet.0123abcd.tmp").write_bytes(b"half")
    times = {name: (output / name).stat().st_mtime_ns for name in parts_of(output)}

    summary = synthesize(config)

    assert summary["complete"] is False
    assert (summary["num_done"], summary["num_images_made"], summary["missing"]) == (5, 5, [])
    assert summary["failed"] == [{"shard_id": 2, "reason": "shard 2: class_loss is not finite at step 0"}]
    assert parts_of(output) == undisturbed
    assert {name: (output / name).stat().st_mtime_ns for name in times} == times
    assert store.failed_shards(str(output)) == [2]
    assert not (output / ".tmp").exists()
    reported = capsys.readouterr().err
    assert "plan: 2 of 6 shards failed before, and are tried again" in reported
    assert "shard 2 failed: NonFiniteError" in reported
    assert "5 of 6 shards done, 1 failed" in reported

    # As a scheduler that submits the job again and again should have it: nothing is left to do, and no actor starts.
    again = synthesize(replace(config, retry_failed=False))
    assert (again["complete"], again["failed"], again["workers"]) == (False, summary["failed"], {})
    assert "1 of 6 shards failed before, and are left as they are" in capsys.readouterr().err


def test_again_on_a_whole_dataset_does_nothing(made: Made) -> None:
    again = synthesize(made.config)
    assert (again["complete"], again["num_images_made"], again["class_loss"]) == (True, 0, None)
    assert again["workers"] == {}
    assert parts_of(made.output) == made.parts


def test_a_shard_that_was_made_and_is_not_there_has_a_reason(tmp_path: Path) -> None:
    tally, index = Tally(), RunningIndex(str(tmp_path), "digest")
    for each in (Outcome(0, "node-7", seconds=1.0), Outcome(2, "node-7", error="OSError", reason="disk full")):
        tally.add(each)
        index.add(each)
    reported = reasons_of_lost([0, 1, 2], tally, index, "/data/out")
    assert reported.keys() == {0, 2}
    assert reported[0].startswith("node-7 wrote it, and it is not in '/data/out'")
    assert reported[2] == "disk full"


def throttle(monkeypatch: pytest.MonkeyPatch, name: str, times: int, named: str) -> list[str]:
    """Let a function of `storage` fail so many times for locations with a name in them; return these."""
    whole, refused = getattr(storage, name), []

    def busy(uri: str, *rest: Any, **options: Any) -> Any:
        if named in uri and len(refused) < times:
            refused.append(uri)
            raise DatasetError(f"cannot list {uri!r}: SlowDown") from OSError(errno.EBUSY, "SlowDown")
        return whole(uri, *rest, **options)

    monkeypatch.setattr(storage, name, busy)
    monkeypatch.setattr("pipeline.storage.retrying.RETRY_DELAYS_S", (0.0,))
    return refused


@pytest.mark.parametrize(("name", "named"), [("list_sizes", "/data"), ("list_files", "/failed")])
def test_a_run_is_planned_and_summed_up_though_the_store_throttles(
    made: Made, monkeypatch: pytest.MonkeyPatch, name: str, named: str
) -> None:
    refused = throttle(monkeypatch, name, 1, named)
    plan = plan_synthesis(made.config)
    assert len(refused) == 1
    refused.clear()
    summary = _finish(plan, Tally(), RunningIndex(plan.config.output, plan.digest), 1.0)
    assert len(refused) == 1
    assert (summary["complete"], summary["num_done"]) == (True, 6)


def test_checkpoints_that_cannot_be_deleted_do_not_end_a_run_that_is_done(
    made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_synthesis(made.config)
    refused = throttle(monkeypatch, "list_files", 9, "/checkpoints")
    assert _finish(plan, Tally(), RunningIndex(plan.config.output, plan.digest), 1.0)["complete"] is True
    assert len(refused) == 2
    assert f"checkpoints are left in {str(made.output)!r}, they could not be deleted: " in capsys.readouterr().err


def test_why_a_run_ended_is_said_where_its_shards_cannot_be_counted(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_synthesis(made.config)
    assert _counted(plan) == "6 of 6 shards are done, "
    throttle(monkeypatch, "list_sizes", 9, "/data")
    assert _counted(plan) == ""


def test_a_run_that_cannot_write_stops() -> None:
    made, failed = Outcome(0, ""), Outcome(0, "", error="OSError", reason="disk full", storage_failed=True)
    tally = Tally()
    for row in [failed] * 4 + [made] + [failed] * 4:
        tally.add(row)
        tally.check_storage(row)
    tally.add(failed)
    with pytest.raises(IncompleteError, match="5 shards in a row failed because of storage: disk full"):
        tally.check_storage(failed)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("put_off", [True, False])
def test_a_run_that_finishes_nothing_pass_after_pass_says_why(
    put_off: bool, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    """Workers that storage gave no teacher are no broken ones."""
    plan, attempts = plan_synthesis(made.config), start_here(Attempts, 3)
    if put_off:
        ray.get(attempts.put_off.remote("a", "CheckpointError: cannot read 's3://teacher': SlowDown"))
    why = ": storage gave a worker no teacher: CheckpointError: cannot read 's3://teacher': SlowDown" if put_off else ""
    _check_workers_left(plan, attempts, {}, 2)
    with pytest.raises(IncompleteError, match=f"^nothing was finished in 3 passes over what is left{why}$"):
        _check_workers_left(plan, attempts, {}, 3)
    ray.kill(attempts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 3}, "seed is 0 there, 3 here"),
        ({"images_per_class": 4}, "images_per_class is 3 there, 4 here"),
        ({"inversion": {"iterations": 8, "stop_steps": [], "stop_fractions": []}}, r"inversion\.stop_fractions is "),
    ],
)
def test_output_of_another_config_is_refused(
    made: Made, tiny_folder: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        synthesize(make_config(tiny_folder, made.output, **changes))
    assert parts_of(made.output) == made.parts


def _cut_off(part: Path) -> None:
    part.write_bytes(part.read_bytes()[:-20])


def _of_another_shard(part: Path) -> None:
    part.write_bytes(sorted(part.parent.iterdir())[1].read_bytes())


def _of_somebody_else(part: Path) -> None:
    pq.write_table(pa.table({"image": [b""], "label": [0]}), part)


@pytest.mark.parametrize("damage", [_cut_off, _of_another_shard, _of_somebody_else])
def test_a_part_that_is_none_does_not_count_as_done(made: Made, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    output = tmp_path / "copy"
    shutil.copytree(made.output, output)
    part = min((output / "data").iterdir())
    damage(part)
    with pytest.raises(DatasetError, match=rf"shard 0 has a damaged part.*{part.name}"):
        synthesize(replace(made.config, output=str(output)))


def test_a_dataset_that_is_not_whole_is_reported_from_one_that_is(made: Made, tmp_path: Path) -> None:
    find_source(str(made.output)).check_complete()
    output = tmp_path / "copy"
    shutil.copytree(made.output, output)
    min((output / "data").iterdir()).unlink()
    with pytest.raises(DatasetError, match="incomplete: it holds 25 of 30 images"):
        find_source(str(output)).check_complete()


def test_output_of_another_teacher_is_refused(made: Made, tmp_path: Path) -> None:
    save_model(make_tiny_model(seed=1), tmp_path, class_names=list("abcdefghij"), mean=HALF, std=HALF)
    with pytest.raises(DatasetError, match=r"teacher\.weights is "):
        synthesize(make_config(tmp_path, made.output))


def _no_patch_left(teacher: Path, folder: Path) -> None:
    schedule = {"iterations": 8, "stop_steps": [2], "stop_fractions": [0.99]}
    synthesize(make_config(teacher, folder / "out", inversion=schedule))


def _no_such_class(teacher: Path, folder: Path) -> None:
    synthesize(make_config(teacher, folder / "out", classes=[10]))


def _under_a_file(teacher: Path, folder: Path) -> None:
    (folder / "file").touch()
    synthesize(make_config(teacher, folder / "file" / "out"))


def _unknown_scheme(teacher: Path, folder: Path) -> None:
    synthesize(make_config(teacher, "gopher://host/out"))


def _foreign_parts(teacher: Path, folder: Path) -> None:
    (folder / "out" / "data").mkdir(parents=True)
    (folder / "out" / "data" / "train-00000.parquet").touch()
    synthesize(make_config(teacher, folder / "out"))


@pytest.mark.parametrize(
    ("attempt", "error", "message"),
    [
        (_no_patch_left, ConfigError, "fewer than one"),
        (_no_such_class, ConfigError, "classes holds 10"),
        (_under_a_file, DatasetError, "cannot write to .*file/out"),
        (_unknown_scheme, DatasetError, "gopher"),
        (_foreign_parts, DatasetError, r"train-00000\.parquet"),
    ],
)
def test_impossible_runs_end_before_anything_is_written(
    tiny_folder: Path,
    tmp_path: Path,
    attempt: Callable[[Path, Path], None],
    error: type[PipelineError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        attempt(tiny_folder, tmp_path)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not (tmp_path / "out" / ".tmp").exists()


def test_dry_run_plans_times_and_writes_nothing(
    made: Made, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = {"max_size": 2, "gpus_per_actor": 0.5, "price_per_hour": 1e6}
    summary = synthesize(make_config(tiny_folder, tmp_path / "out", dry_run=True, pool=shared))
    assert not (tmp_path / "out").exists()
    assert (summary["num_shards"], summary["num_done"], summary["num_images_to_make"]) == (6, 0, 30)
    # Two actors on one GPU, of which each may take twice as long.
    assert summary["cost"] == pytest.approx(2 * summary["estimated_gpu_hours"] * 1e6, rel=1e-3)
    assert (summary["actors"], summary["estimated_hours"]) == (2, summary["estimated_gpu_hours"])
    assert summary["estimated_gpu_hours"] > 0
    assert len(summary["seconds_per_step"]) == 3
    reported = capsys.readouterr().err
    assert "6 shards, 30 images" in reported
    assert "2 steps of 11 patches" in reported
    assert re.search(r"about \S+ GPU-hours, \S+ hours \(\S+ (s|minutes)\) with 2 actors", reported)
    assert "plan: computing on GPUs, 2 actors on each: the cluster has 2\n" in reported
    assert "the following is an upper bound" in reported
    assert f"a step of 5 images takes {summary['peak_bytes'] / 2**30:.3g} GiB at most" in reported
    assert 5 < summary["largest_micro_batch"] == summary["largest_shard_size"]
    assert summary["cost"] > 0
    assert f"that costs {summary['cost']:g} at 1e+06 an hour (pool.price_per_hour)" in reported
    done = synthesize(make_config(tiny_folder, made.output, dry_run=True))
    assert (done["num_done"], done["num_images_to_make"], done["estimated_hours"]) == (6, 0, 0.0)


def test_a_dry_run_counts_on_the_actors_that_there_is_room_for(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = {"max_size": 8, "gpus_per_actor": 1.0, "price_per_hour": 1e6}
    summary = synthesize(make_config(tiny_folder, tmp_path / "out", dry_run=True, pool=pool))
    # The session's cluster has two GPUs, and there are six shards.
    assert (summary["actors"], summary["estimated_hours"]) == (2, summary["estimated_gpu_hours"] / 2)
    assert summary["cost"] == pytest.approx(summary["estimated_gpu_hours"] * 1e6, rel=1e-3)
    assert "plan: the cluster has room for 2 of 6 actors (pool.max_size)\n" in capsys.readouterr().err


@pytest.mark.usefixtures("open_cluster")
def test_a_dry_run_that_gets_no_actor_says_what_it_waits_for_and_ends(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.synthesis.dry_run._REPORT_EVERY_S", 0.5)
    pool = {"cpus_per_actor": 9, "device": "cpu", "start_timeout_s": 2}
    with pytest.raises(
        IncompleteError, match=r"no actor started in 2 s \(pool\.start_timeout_s\): .* of 4 CPUs are free"
    ):
        synthesize(make_config(tiny_folder, tmp_path / "out", dry_run=True, pool=pool))
    assert "plan: waiting for an actor to start: " in capsys.readouterr().err


def test_a_pool_that_can_never_start_is_reported(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"min_size 3 with 1 GPU per actor: the cluster has room for 2"):
        pool_options(make_config(tiny_folder, "x", pool={"min_size": 3, "max_size": 3}), 6)
    huge = make_config(tiny_folder, "x", pool={"cpus_per_actor": 9, "device": "cpu"})
    with pytest.raises(ConfigError, match=r"9 CPUs \(pool\.cpus_per_actor\) per actor"):
        pool_options(huge, 6)
    # A process that joined the cluster of another knows it too, and does not wait for nodes that will not come.
    config = make_config(tiny_folder, tmp_path / "out", pool={"cpus_per_actor": 9, "device": "cpu"})
    with pytest.raises(ConfigError, match=r"9 CPUs .* the cluster has room for 0"), own_errors():
        ray.get(ray.remote(synthesize).remote(config))


@pytest.mark.usefixtures("open_cluster")
def test_a_pool_that_does_not_start_in_time_is_reported(tiny_folder: Path, tmp_path: Path) -> None:
    pool = {"cpus_per_actor": 9, "device": "cpu", "start_timeout_s": 2}
    config = make_config(tiny_folder, tmp_path / "out", pool=pool)
    with pytest.raises(IncompleteError, match=r"0 of 6 shards are done, .* of 4 CPUs are free"):
        synthesize(config)


MASKED = {"iterations": 8, "stop_steps": [2, 4], "stop_fractions": [0.5, 0.5], "mask_only": True}


def test_a_masked_teacher_tells_at_once_that_nothing_is_saved(
    whole_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notice = "SwinTransformer reads whole images only: stopped patches are masked, which saves no time"
    config = make_config(whole_folder, tmp_path / "out", inversion=MASKED)
    dry = synthesize(replace(config, dry_run=True))
    reported = capsys.readouterr().err
    # The session's cluster may tell of other tests' workers on the same stream.
    assert next(line for line in reported.splitlines() if line.startswith("plan: ")) == f"plan: {notice}"
    assert "4 steps of 16 patches" in reported
    assert len(dry["seconds_per_step"]) == 3
    assert synthesize(config)["complete"] is True
    assert capsys.readouterr().err.count(notice) == 1
    manifest = store.read_manifest(str(tmp_path / "out"))
    assert (manifest["grid_size"], manifest["patch_size"]) == (8, 8)
    assert (manifest["teacher"]["notice"], manifest["teacher"]["ranking"]) == (notice, "gradient_activation")
    table = pq.read_table(tmp_path / "out" / "data")
    assert {len(kept) for kept in table["keep_indices"].to_pylist()} == {16}
    first = schema.decode_image(table["image"][0].as_py()["bytes"], "first")
    gray = (first.reshape(8, 8, 8, 8, 3) == 128).all(axis=(1, 3, 4)).flatten()
    assert sorted(set(range(64)) - set(gray.nonzero()[0].tolist())) == table["keep_indices"][0].as_py()


def test_without_the_option_such_a_teacher_is_refused(whole_folder: Path, tmp_path: Path) -> None:
    config = make_config(whole_folder, tmp_path / "out", inversion={**MASKED, "mask_only": False})
    with pytest.raises(ModelError, match=r"SwinTransformer cannot be run on a token subset: .*inversion\.mask_only"):
        synthesize(config)


def test_a_ranking_that_the_teacher_does_not_have_is_refused_before_any_work(tiny_folder: Path, tmp_path: Path) -> None:
    config = make_config(
        tiny_folder, tmp_path / "out", inversion={**MASKED, "mask_only": False, "ranking": "pool_attention"}
    )
    with pytest.raises(ModelError, match="VisionTransformer cannot rank its patches by pool_attention"):
        plan_synthesis(config)
