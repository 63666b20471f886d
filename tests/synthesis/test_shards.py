import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import CheckpointError, ConfigError, ModelError, PipelineError
from pipeline.synthesis import SynthesisConfig, plan_shards
from pipeline.synthesis.config import located
from pipeline.synthesis.identity import config_digest, image_seed
from pipeline.synthesis.networks import load_networks
from pipeline.synthesis.plan import plan_synthesis
from pipeline.synthesis.shards import ShardPlan, make_plan
from tests.synthesis.conftest import make_config


def test_plan_is_sorted_by_class_and_whole(tiny_folder: Path) -> None:
    shards = plan_shards(make_config(tiny_folder, "out", images_per_class=3, shard_size=4, classes=[5, 2, 7]))
    assert shards == [
        {
            "shard_id": 0,
            "labels": [5, 5, 5, 2],
            "image_ids": ["00005-000000", "00005-000001", "00005-000002", "00002-000000"],
        },
        {
            "shard_id": 1,
            "labels": [2, 2, 7, 7],
            "image_ids": ["00002-000001", "00002-000002", "00007-000000", "00007-000001"],
        },
        {"shard_id": 2, "labels": [7], "image_ids": ["00007-000002"]},
    ]


def test_all_classes_of_the_teacher_by_default(tiny_folder: Path) -> None:
    shards = plan_shards(make_config(tiny_folder, "out"))
    assert sorted({label for shard in shards for label in shard["labels"]}) == list(range(10))
    ids = [image_id for shard in shards for image_id in shard["image_ids"]]
    assert len(set(ids)) == len(ids) == 30


def test_digest_covers_what_decides_pixels_and_nothing_else(tiny_folder: Path) -> None:
    def digest_with(**changes: Any) -> str:
        config = make_config(tiny_folder, changes.pop("output", "out"), **changes)
        return config_digest(config, load_networks(config))

    base = digest_with()
    assert digest_with(output="elsewhere", dry_run=True, pool={"max_size": 7, "start_timeout_s": 5}) == base
    assert digest_with(classes=list(range(10))) == base
    name = f"local-dir:{tiny_folder}"
    schedule = {"iterations": 8, "stop_steps": [2, 4], "stop_fractions": [0.3, 0.3]}
    changes_pixels: list[dict[str, Any]] = [
        {"classes": [1, 2]},
        {"images_per_class": 4},
        {"shard_size": 6},
        {"seed": 1},
        {"pool": {"cpus_per_actor": 2}},
        {"inversion": {**schedule, "lr": 0.1}},
        {"inversion": {**schedule, "micro_batch": 2}},
        {"inversion": {**schedule, "dtype": "bfloat16"}},
        {"inversion": {**schedule, "adaptive_end": {"hold_steps": 2}}},
        {"teacher": {"name": name, "mean": [0.4, 0.5, 0.5]}},
        {"teacher": {"name": name, "class_names": list("ABCDEFGHIJ")}},
    ]
    digests = [digest_with(**change) for change in changes_pixels]
    assert len({base, *digests}) == len(changes_pixels) + 1


def test_digest_covers_how_a_folder_says_its_model_is_made(tiny_folder: Path, tmp_path: Path) -> None:
    """Other heads leave the weights as they are, and make another teacher of them."""
    other = tmp_path / "teacher"
    shutil.copytree(tiny_folder, other)
    config = json.loads((other / "config.json").read_text())
    config["model_args"]["num_heads"] = 4
    (other / "config.json").write_text(json.dumps(config))
    digests = set()
    for folder in (tiny_folder, other):
        made = make_config(folder, "out")
        digests.add(config_digest(made, load_networks(made)))
    assert len(digests) == 2


def test_seeds_differ_between_images_shards_and_configs() -> None:
    seeds = {image_seed(d, s, i) for d in ("a", "b") for s in (0, 1) for i in ("x", "y")}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert image_seed("a", 0, "x") == 857300553457259196


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": ""}, "output"),
        ({"images_per_class": 0}, "images_per_class must be at least 1, not 0"),
        ({"shard_size": -1}, "shard_size must be at least 1, not -1"),
        ({"seed": -1}, "seed"),
        ({"classes": []}, "classes is an empty list"),
        ({"classes": [1, -2]}, "classes holds -2"),
        ({"classes": [3, 1, 3]}, "classes holds 3 more than once"),
        ({"pool": {"min_size": 0}}, "min_size must be at least 1, not 0"),
        ({"pool": {"min_size": 3, "max_size": 2}}, "max_size must be at least min_size 3, not 2"),
        ({"pool": {"initial_size": 3, "max_size": 2}}, r"pool.initial_size must lie in \[1, 2\], not 3"),
        ({"pool": {"cpus_per_actor": 0}}, "cpus_per_actor"),
        ({"pool": {"gpus_per_actor": 2}}, "pool.gpus_per_actor must not exceed 1, not 2: an actor computes on one GPU"),
        ({"pool": {"gpus_per_actor": 0}}, r"pool.gpus_per_actor must lie in \[0.01, 1\], not 0"),
        ({"pool": {"label_selector": {"-gpu": "L4"}}}, "pool.label_selector has '-gpu', which is no label"),
        ({"pool": {"label_selector": {"gpu": "in(L4"}}}, r"pool.label_selector.gpu must be VALUE, .* not 'in\(L4'"),
        ({"pool": {"label_selector": {"ray.io/node-id": "a"}}}, "pool.label_selector has 'ray.io/node-id'"),
        ({"pool": {"label_selector": "L4"}}, "label_selector"),
        ({"pool": {"fallback": [{"gpu": "L4"}]}}, "pool.fallback .*'L4'.* comes after pool.label_selector"),
        (
            {"pool": {"label_selector": {"gpu": "L4"}, "fallback": [{}, {"gpu": "!!L4"}]}},
            r"pool.fallback\[1\].gpu must be VALUE, .* not '!!L4'",
        ),
        ({"pool": {"device": "tpu"}}, "device"),
        ({"pool": {"start_timeout_s": 0}}, "start_timeout_s"),
        ({"pool": {"no_progress_timeout_s": 0}}, "no_progress_timeout_s"),
        ({"inversion": {"stop_steps": [5], "stop_fractions": [1.0]}}, "fractions"),
        (
            {"inversion": {"class_weight": 0, "tv_l2": 0}},
            "inversion.class_weight, .* are 0, and 4000 iterations would leave the images as they start",
        ),
        ({"inversion": {"feature_prior": 0.1}}, "feature_model"),
        ({"inversion": {"adversarial": 0.1}}, "inversion.adversarial 0.1 and student None go together"),
        ({"student": {"name": "x"}}, "inversion.adversarial 0.0 and student 'x' go together"),
        (
            {
                "inversion": {"feature_prior": 0.1, "scope": "published", "micro_batch": 2},
                "feature_model": {"name": "x"},
            },
            "micro_batch 2 splits shards of 5",
        ),
        ({"inversion": {"rebirth": 2}}, "images_per_class must be a multiple of inversion.rebirth 2, not 3"),
        (
            {"images_per_class": 4, "inversion": {"rebirth": 2}},
            "shard_size must be a multiple of inversion.rebirth 2, not 5",
        ),
        ({"inversion": {"adaptive_end": {"confidence": 2.0}}}, "adaptive_end.confidence must lie in"),
        ({"color": "red"}, "color"),
        ({"images_per_class": "many"}, "images_per_class"),
    ],
)
def test_impossible_configs_name_the_thing_and_the_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(Path("teacher"), "out", **changes)


def test_starting_images_need_no_loss() -> None:
    unweighted = {"class_weight": 0, "tv_l2": 0}
    start = {"iterations": 0, "stop_steps": [], "stop_fractions": []}
    make_config(Path("teacher"), "out", inversion=unweighted | start)


def test_more_shards_than_can_be_numbered_are_refused() -> None:
    def plan(images_per_class: int, shard_size: int) -> ShardPlan:
        sizes = {"images_per_class": images_per_class, "shard_size": shard_size}
        return make_plan(make_config(Path("teacher"), "out", **sizes), num_classes=8)

    for images_per_class, shard_size in ((10**19, 1), (2**28 + 1, 1), (10**11, 32)):
        message = f"^images_per_class {images_per_class} of 8 classes in shards of shard_size {shard_size} are "
        with pytest.raises(ConfigError, match=message):
            plan(images_per_class, shard_size)
    assert len(plan(2**28, 1)) == 2**31


def test_a_falloff_that_makes_no_finite_images_is_refused_before_the_work(tiny_folder: Path, tmp_path: Path) -> None:
    inversion = {"iterations": 8, "stop_steps": [], "stop_fractions": [], "falloff": 60}
    plan_synthesis(make_config(tiny_folder, tmp_path / "out", inversion=inversion))
    with pytest.raises(ConfigError, match="falloff is 60: the finest waves of 32 x 32 pixels"):
        plan_synthesis(make_config(tiny_folder, tmp_path / "out", inversion=inversion | {"basis": "cosine"}))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"classes": [4, 10]}, ConfigError, "classes holds 10, the teacher has 10 classes"),
        ({"teacher": {"class_names": ["cat", "dog"]}}, ConfigError, "class_names has 2 names, .* has 10 classes"),
        ({"teacher": {"num_classes": 12}}, ModelError, "12"),
        ({"teacher": {"name": "vit_unheard_of", "pretrained": True}}, ModelError, "vit_unheard_of"),
        ({"teacher": {"name": "vit_tiny_patch16_224", "checkpoint": "gone.pth"}}, CheckpointError, r"gone\.pth"),
    ],
)
def test_impossible_teachers(
    tiny_folder: Path, changes: dict[str, Any], error: type[PipelineError], message: str
) -> None:
    changes.setdefault("teacher", {}).setdefault("name", f"local-dir:{tiny_folder}")
    config: SynthesisConfig = make_config(tiny_folder, "out", **changes)
    with pytest.raises(error, match=message):
        plan_shards(config)


def test_local_places_are_absolute_for_the_actors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = located(make_config(Path("teacher"), "runs/out"))
    assert config.output == str(tmp_path / "runs" / "out")
    assert config.teacher.name == f"local-dir:{tmp_path / 'teacher'}"
    assert located(make_config(Path("teacher"), "s3://bucket/out")).output == "s3://bucket/out"
