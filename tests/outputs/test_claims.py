"""Identity of a run, and the claim of an output by one of several that start at once."""

import errno
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.config import former_default
from pipeline.errors import ConfigError, DatasetError
from pipeline.outputs import (
    Claim,
    check_same_settings,
    claim,
    differences,
    find_config,
    hold,
    identifying_settings,
    make_document,
    without_locations,
)
from pipeline.outputs.lease import lease
from pipeline.outputs.owners import JobName, check_place

JOBS: list[JobName] = ["synthesize", "calibrate", "distill"]


def test_differences_are_reported_by_name() -> None:
    there = {"seed": 0, "config": {"lr": 0.1, "epochs": 3}, "classes": list(range(100))}
    here = {"seed": 1, "config": {"lr": 0.1}, "classes": list(range(99))}
    seed, epochs, classes = sorted(differences(there, here), key=lambda line: ("s", "e", "c").index(line[0]))
    assert seed == "seed is 0 there, 1 here"
    assert epochs == "epochs is 3 there, None here"
    (made,) = differences({"as_made": True}, {})
    assert made == "images as the config of a synthesis is True there, None here"
    # As they are set, not as they are recorded.
    there = {"torch_threads": 1, "ranking": "gradient", "compaction": {"file_bytes": 5}, "labelled": {"num_images": 2}}
    assert [line.partition(" is ")[0] for line in differences(there, {})] == [
        "compaction",
        "labeled",
        "inversion.ranking",
        "pool.cpus_per_actor",
    ]
    assert list(differences(there, {**there, "compaction": {"file_bytes": 6}})) == [
        "file_mb (in bytes) is 5 there, 6 here"
    ]
    assert len(classes) < 150
    assert list(differences(there, json.loads(json.dumps(there)))) == []


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("place", ["local", "s3"])
def test_of_many_that_claim_an_output_at_once_one_has_it(
    job: JobName, place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if place == "s3":
        request.getfixturevalue("s3")
    output = "s3://made/out" if place == "s3" else str(tmp_path / "out")
    start = threading.Barrier(8)

    def attempt(seed: int) -> Claim | str:
        start.wait()
        try:
            # Two of each seed.
            return claim(output, job, make_document(job, {"seed": seed // 2}, {}))
        except DatasetError as error:
            return str(error)

    with ThreadPoolExecutor(8) as threads:
        ended = list(threads.map(attempt, range(8)))
    claims = [claimed for claimed in ended if isinstance(claimed, Claim)]
    assert [claimed.new for claimed in claims].count(True) == 1
    assert len(claims) == 2
    assert claims[0].document == claims[1].document
    winner = claims[0].document["identity"]["seed"]
    refused = [reported for reported in ended if isinstance(reported, str)]
    for reported in refused:
        assert "made with other settings: seed is " in reported
        assert f"seed is {winner} there" in reported
        assert "nothing is made yet: if that run is no longer at work, delete" in reported


def test_other_jobs_do_not_share_an_output(tmp_path: Path) -> None:
    pairs: list[tuple[JobName, JobName]] = [
        ("synthesize", "distill"),
        ("distill", "calibrate"),
        ("calibrate", "synthesize"),
    ]
    for first, second in pairs:
        output = str(tmp_path / first)
        claim(output, first, make_document(first, {"seed": 0}, {}))
        with pytest.raises(DatasetError, match=f"{second} needs a folder of its own"):
            claim(output, second, make_document(second, {"seed": 0}, {}))
        assert len(os.listdir(output)) == 1


def test_a_run_that_makes_nothing_takes_its_claim_back(tmp_path: Path) -> None:
    output, mine = tmp_path / "a" / "out", make_document("distill", {"seed": 0}, {})
    with pytest.raises(KeyboardInterrupt), hold(str(output), "distill", mine):  # noqa: PT012
        assert json.loads((output / "config.json").read_text()) == mine
        raise KeyboardInterrupt
    assert not (tmp_path / "a").exists()
    with pytest.raises(DatasetError), hold(str(output), "distill", mine):  # noqa: PT012
        (output / "checkpoint").write_text("")
        raise DatasetError("the disk is full")
    assert sorted(os.listdir(output)) == ["checkpoint", "config.json"]
    with hold(str(output), "distill", mine) as (claimed, waited):
        assert (claimed.new, waited) == (False, False)
    assert sorted(os.listdir(output)) == ["checkpoint", "config.json"]


def test_a_run_that_has_checkpoints_of_qat_keeps_its_claim_until_another_begins_that_it_does_not_work_beside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, other = (make_document("calibrate", {"seed": seed}, {}) for seed in (0, 1))
    folder = tmp_path / ".qat-checkpoints" / "w4a4-01234567" / "checkpoints"
    with pytest.raises(KeyboardInterrupt), hold(str(tmp_path), "calibrate", mine):  # noqa: PT012
        folder.mkdir(parents=True)
        (folder / "epoch-00001.pt").write_text("")
        raise KeyboardInterrupt
    assert sorted(os.listdir(tmp_path)) == [".qat-checkpoints", "config.json"]
    told = (
        r"seed is 0 there, 1 here; nothing is made yet but checkpoints of a training: if that run is no longer at "
        r"work, delete '.*config\.json' to begin anew"
    )
    with lease(str(tmp_path), "calibrate", beat_s=0.1):
        for ask in (claim, find_config):
            with pytest.raises(DatasetError, match=told):
                ask(str(tmp_path), "calibrate", other)
    capsys.readouterr()
    assert find_config(str(tmp_path), "calibrate", other) is None
    assert claim(str(tmp_path), "calibrate", other).new
    assert "calibrate: a training of other settings was stopped in" in capsys.readouterr().err
    assert json.loads((tmp_path / "config.json").read_text()) == other
    assert (folder / "epoch-00001.pt").exists()
    # Where anything else was made, it is that run's.
    (tmp_path / "ranges.json").write_text("{}")
    with pytest.raises(DatasetError, match="seed is 1 there, 0 here; give this run another output"):
        claim(str(tmp_path), "calibrate", mine)


OLD_TEACHER = {"name": "local-dir:/old/t", "std": None}
SETTINGS = {"lr": 0.1, "images": "/old/images", "labelled": "/old/l", "teacher": OLD_TEACHER}
# As commit a18575d wrote them, paths among the facts.
OLD: dict[JobName, dict[str, Any]] = {
    "calibrate": {
        "job": "calibrate",
        "digest": "0" * 64,
        "teacher": "t" * 64,
        "images": "/old/images",
        "dataset": None,
        "num_images": 13,
        "placement": "linear",
        "config": {"images": "images", "placement": "linear"},
    },
    "distill": {
        "job": "distill",
        "digest": "0" * 64,
        "config": SETTINGS,
        "teacher": "t" * 64,
        "student": "s" * 64,
        "dataset": "d" * 64,
        "num_images": 13,
        "settings": {},
    },
}
FACTS: dict[JobName, dict[str, Any]] = {
    "calibrate": {"teacher": "t" * 64, "dataset": None, "num_images": 13, "placement": "linear", "images_sha256": "i"},
    "distill": {
        "config": without_locations({**SETTINGS, "images": "moved", "labelled": "moved", "images_split": None}),
        "teacher": "t" * 64,
        "student": "s" * 64,
        "dataset": "d" * 64,
        "num_images": 13,
        "labelled": {"num_images": 3},
    },
}


@pytest.mark.parametrize("job", ["calibrate", "distill"])
def test_an_output_of_an_earlier_version_is_known_again_wherever_its_project_lies(job: JobName, tmp_path: Path) -> None:
    check_same_settings(str(tmp_path), job, OLD[job], make_document(job, FACTS[job], {}))
    for change in ({"num_images": 14}, {"teacher": "u" * 64}):
        (name, value), *_ = change.items()
        with pytest.raises(DatasetError, match=f"made with other settings: {name} is .* there, {value!r:.10}"):
            check_same_settings(str(tmp_path), job, OLD[job], make_document(job, FACTS[job] | change, {}))


@dataclass(frozen=True)
class Inner:
    old: int = 1
    new: int = 2


@dataclass(frozen=True)
class Outer:
    old: int
    output: str = ""
    new: tuple[int, ...] = ()
    inner: Inner = field(default_factory=Inner)
    optional: Inner | None = None
    changed: int = field(default=3, metadata=former_default(1))


@pytest.mark.parametrize(
    ("config", "identity"),
    [
        (Outer(0, changed=1), {"old": 0, "inner": {"old": 1}}),
        (Outer(0), {"old": 0, "inner": {"old": 1}, "changed": 3}),
        (Outer(0, changed=1, output="x"), {"old": 0, "inner": {"old": 1}}),
        (Outer(0, changed=1, new=(3,)), {"old": 0, "new": [3], "inner": {"old": 1}}),
        (Outer(0, changed=1, inner=Inner(5, 6)), {"old": 0, "inner": {"old": 5, "new": 6}}),
        (Outer(0, changed=1, optional=Inner()), {"old": 0, "inner": {"old": 1}, "optional": {}}),
        (Outer(0, changed=1, optional=Inner(new=3)), {"old": 0, "inner": {"old": 1}, "optional": {"new": 3}}),
    ],
)
def test_a_setting_identifies_a_run_unless_it_is_excluded(config: Outer, identity: dict[str, Any]) -> None:
    """A setting that came later counts where it is not at its first default, so that older runs keep their digest."""
    recorded, excluded = ("old", "inner", "inner.old"), ("output",)
    assert identifying_settings(config, recorded=recorded, excluded=excluded) == identity


def test_of_settings_paths_are_left_out() -> None:
    assert without_locations(SETTINGS) == {"lr": 0.1, "labelled": True, "teacher": {"std": None}}
    model = {"name": "vit_tiny", "checkpoint": "/x.pth", "class_names": "/names.txt"}
    assert without_locations({"student": {"model": model}}) == {"student": {"model": {"name": "vit_tiny"}}}


def test_an_output_in_the_package_of_a_submitted_job_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123"
    package.mkdir(parents=True)
    check_place(str(tmp_path / "out"), shared=True)
    monkeypatch.chdir(package)
    check_place("s3://bucket/out", shared=True)
    check_place("/data/out", shared=True)
    with pytest.raises(ConfigError, match=r"output 'runs/x' would be in the package .* \(--output s3://BUCKET/"):
        check_place("runs/x", shared=False)


@pytest.mark.parametrize("name", ["find_files", "remove"])
def test_why_a_run_ended_is_said_where_its_claim_cannot_be_withdrawn(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def busy(uri: str) -> None:
        raise OSError(errno.EBUSY, "SlowDown")

    monkeypatch.setattr("pipeline.storage.retrying.RETRY_DELAYS_S", (0.0,))
    monkeypatch.setattr(storage, name, busy)
    with (
        pytest.raises(ConfigError, match="not enough GPUs"),
        hold(str(tmp_path), "distill", make_document("distill", {}, {})),
    ):
        raise ConfigError("not enough GPUs")
    assert "config.json' of a run that made nothing is left: OSError: [Errno 16] SlowDown" in capsys.readouterr().err
