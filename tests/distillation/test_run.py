import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import ray
import timm
import torch

from pipeline.config import from_dict, to_dict
from pipeline.dataset import write_images
from pipeline.dataset.rows import read_first
from pipeline.distillation import AugmentConfig, DistillationConfig, StudentConfig, WeightedImages, distill
from pipeline.distillation.descent import Group
from pipeline.distillation.plan import plan_distillation
from pipeline.distillation.workers import TrainingTask, train_on
from pipeline.errors import ConfigError, DatasetError, ModelError, NonFiniteError, OtherModelError, PipelineError
from pipeline.models import ModelConfig, load_model, save_model, weight_digest
from pipeline.workers import WorkersConfig
from tests.conftest import HALF, TINY
from tests.distillation.conftest import NAMES, write_ragged
from tests.report.page_check import check_page

pytestmark = pytest.mark.usefixtures("ray_session")


MakeConfig = Callable[..., DistillationConfig]
HERE = WorkersConfig(size=0, device="cpu")


def maker(folder: Path, teacher: Path) -> MakeConfig:
    """Settings of a training on 23 images: no number of workers but 1 and 23 divides them."""
    write_ragged(folder / "images.parquet", 23)
    write_ragged(folder / "labeled.parquet", 13, seed=1)

    def make(name: str, **changes: Any) -> DistillationConfig:
        values = {
            "teacher": ModelConfig(name=f"local-dir:{teacher}"),
            "student": StudentConfig(depth_pruned=[1]),
            "images": str(folder / "images.parquet"),
            "labeled": str(folder / "labeled.parquet"),
            "output": str(folder / name),
            "epochs": 3,
            "batch_size": 8,
            "optimizer": "sgd",
            "lr": 0.01,
            "token_weight": 0.5,
            "augment": None,
            "workers": HERE,
        }
        return DistillationConfig(**{**values, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture
def make_config(tiny_folder: Path, tmp_path: Path) -> MakeConfig:
    return maker(tmp_path, tiny_folder)


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> dict[int, dict[str, Any]]:
    """Results of the same training with 0, 1 and 2 workers."""
    make = maker(tmp_path_factory.mktemp("runs"), tiny_folder)
    return {workers: distill(make(f"workers-{workers}", workers=replace(HERE, size=workers))) for workers in (0, 1, 2)}


def metrics(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]


def checksum(image_ids: list[str]) -> int:
    return sum(int.from_bytes(sha256(name.encode()).digest()[:5]) for name in image_ids)


def check_exact(result: dict[str, Any], num_workers: int) -> None:
    """Every epoch read every image once, and all workers ended with the weights that are saved."""
    output = str(Path(result["student"]).parents[1])
    expected = checksum([f"images-{row:05d}" for row in range(23)])
    assert [(row["images"], row["image_ids_checksum"]) for row in metrics(output)] == [(23, expected)] * 3
    assert len(result["weights_sha256"]) == num_workers
    assert len(set(result["weights_sha256"])) == 1
    saved = load_model(ModelConfig(name=f"local-dir:{result['last']}"))
    assert weight_digest(saved.model) == result["weights_sha256"][0]
    assert not list(Path(output).glob(".*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_read_every_image_once_an_epoch_and_end_with_equal_weights(
    runs: dict[int, dict[str, Any]], workers: int
) -> None:
    check_exact(runs[workers], workers)


def test_so_they_do_when_images_are_read_anew_at_each_epoch_as_views_and_the_student_has_batch_norm(
    make_config: MakeConfig,
) -> None:
    """The weights that have to be equal include the statistics of BatchNorm."""
    streamed = {"cache_gb": 0.0, "shuffle_buffer": 8}
    small = {"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64]}
    student = StudentConfig(model=ModelConfig(name="resnet10t", model_args=small))
    changes = {"student": student, "token_weight": 0.0, "augment": AugmentConfig(), **streamed}
    check_exact(distill(make_config("out", workers=replace(HERE, size=2), **changes)), 2)


@pytest.mark.parametrize("cache_gb", [1.0, 0.0])
def test_a_training_on_views_reads_every_image_once_and_scores_images_as_they_are(
    runs: dict[int, dict[str, Any]], make_config: MakeConfig, cache_gb: float
) -> None:
    views = AugmentConfig(flip=0.5, mixup=0.5)
    result = distill(make_config("out", augment=views, cache_gb=cache_gb, shuffle_buffer=8))
    check_exact(result, 1)
    scores = ("before_top1", "teacher_top1")
    assert [result[name] for name in scores] == [runs[0][name] for name in scores] == [runs[2][name] for name in scores]
    assert result["weights_sha256"] != runs[0]["weights_sha256"]


def test_several_datasets_are_trained_on_together(make_config: MakeConfig, tmp_path: Path) -> None:
    # Every synthesis counts its images from 0.
    (tmp_path / "two").mkdir()
    write_ragged(tmp_path / "two" / "images.parquet", 5, seed=2)
    both = [str(tmp_path / "images.parquet"), str(tmp_path / "two" / "images.parquet")]
    rows = []
    for cache_gb in (1.0, 0.0):
        result = distill(make_config(f"cache-{cache_gb}", images=both, cache_gb=cache_gb, epochs=1))
        rows += metrics(str(Path(result["student"]).parents[1]))
    assert [row["images"] for row in rows] == [28, 28]
    assert rows[0]["image_ids_checksum"] == rows[1]["image_ids_checksum"]


def test_a_few_images_are_read_several_times_an_epoch_each_as_another_view(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    write_ragged(tmp_path / "real" / "images.parquet", 2, seed=2)
    values = {"uri": str(tmp_path / "real" / "images.parquet"), "weight": 3}
    rows = []
    for cache_gb in (1.0, 0.0):
        mixed = [str(tmp_path / "images.parquet"), WeightedImages(**values)]
        result = distill(make_config(f"cache-{cache_gb}", images=mixed, cache_gb=cache_gb, epochs=1))
        rows += metrics(str(Path(result["student"]).parents[1]))
    assert [row["images"] for row in rows] == [23 + 3 * 2, 29]
    assert rows[0]["image_ids_checksum"] == rows[1]["image_ids_checksum"]
    with pytest.raises(DatasetError, match="other settings"):
        distill(make_config("cache-1.0", images=[str(tmp_path / "images.parquet"), values["uri"]], epochs=1))
    # The seeds of views derive from the ids.
    plan = plan_distillation(from_dict(DistillationConfig, {**to_dict(make_config("other")), "images": [values]}))
    ids = [name for source in plan.images.sources for name in read_first(source, ["image_id"])["image_id"].to_pylist()]
    assert len(set(ids)) == 3
    assert plan.images.num_rows == 6


def test_workers_start_with_as_many_as_find_room_and_say_so(
    make_config: MakeConfig, runs: dict[int, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    # The cluster has cores for two of them.
    cores = int(ray.cluster_resources()["CPU"]) // 2
    elastic = WorkersConfig(size=3, min_size=1, cpus_per_worker=cores, device="cpu")
    result = distill(make_config("elastic", workers=elastic))
    check_exact(result, 2)
    assert [row["workers"] for row in metrics(str(Path(result["student"]).parents[1]))] == [2, 2, 2]
    assert re.search(r"distill: epoch 3/3: loss .* images/s, 2 of 3 workers, 0 s left", capsys.readouterr().err)
    # On as many threads as cores they round otherwise.
    assert result["loss"] == pytest.approx(runs[2]["loss"], rel=1e-3)


def test_fewer_workers_are_refused_where_they_might_leave_no_cpu_to_read_images(make_config: MakeConfig) -> None:
    workers = WorkersConfig(size=3, min_size=1, device="cpu")
    with pytest.raises(ConfigError, match=r"workers.min_size 1 lets workers take every core .* raise cache_gb \(0\)"):
        distill(make_config("out", workers=workers, cache_gb=0.0))


@pytest.mark.parametrize("cache_gb", [1.0, 0.0])
def test_two_datasets_in_one_folder_are_refused(make_config: MakeConfig, tmp_path: Path, cache_gb: float) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / "mixed").mkdir(exist_ok=True)
        write_ragged(tmp_path / name / "images.parquet", 5)
        (tmp_path / name / "images.parquet").rename(tmp_path / "mixed" / f"{name}.parquet")
    with pytest.raises(DatasetError, match="more than one image with the image_id 'images-0000"):
        distill(make_config("out", images=str(tmp_path / "mixed"), cache_gb=cache_gb))
    assert not (tmp_path / "out").exists()


def test_one_worker_trains_as_this_process_does(runs: dict[int, dict[str, Any]]) -> None:
    assert runs[1]["weights_sha256"] == runs[0]["weights_sha256"]


def test_one_worker_trains_as_two_do(runs: dict[int, dict[str, Any]]) -> None:
    one, two = (load_model(ModelConfig(name=f"local-dir:{runs[workers]['last']}")).model for workers in (1, 2))
    other = two.state_dict()
    for name, value in one.state_dict().items():
        # Shares are summed in another order.
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-5)


def test_what_is_written(make_config: MakeConfig) -> None:
    config = make_config("out")
    result = distill(config)
    output = Path(config.output)
    files = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    students = {f"student/{name}/{file}" for name in ("best", "last") for file in ("config.json", "model.safetensors")}
    checkpoints = {"checkpoints/epoch-00002.pt", "checkpoints/epoch-00003.pt"}
    own = {"config.json", "curve.png", "metrics.jsonl", "report.html", "result.json"}
    assert files == students | checkpoints | own
    assert (output / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((output / "result.json").read_text()) == result
    page = check_page((output / "report.html").read_text())
    # Loss and its two terms, the learning rate, and the top-1 before training and of three epochs.
    assert page.tags.count("polyline") == 3 + 1 + 1
    assert {"blocks 1 of the teacher", f"{result['best_top1']:.2f}"} <= set(page.texts)
    assert {"Classes: the teacher", "Classes: the best student"} <= set(page.texts)
    assert result["student"] == f"{config.output}/student/best"
    assert result["best_top1"] == max(row["top1"] for row in metrics(config.output))
    student = timm.create_model(f"local-dir:{result['student']}", pretrained=True)
    assert len(student.blocks) == 1  # type: ignore[arg-type]
    assert student.pretrained_cfg["label_names"] == [f"class {letter}" for letter in "abcdefghij"]  # type: ignore[index]


def test_output_anywhere(make_config: MakeConfig) -> None:
    result = distill(make_config("out", output="memory://distilled/out", epochs=1))
    store = fsspec.filesystem("memory")
    names = {name.removeprefix("/distilled/out/") for name in store.find("/distilled/out")}
    assert names >= {"student/best/model.safetensors", "checkpoints/epoch-00001.pt", "curve.png", "metrics.jsonl"}
    assert json.loads(store.cat_file("/distilled/out/result.json")) == result


def test_a_finished_run_is_not_trained_again(make_config: MakeConfig) -> None:
    config = make_config("out", epochs=1)
    first = distill(config)
    before = {path: path.stat().st_mtime_ns for path in Path(config.output).rglob("*")}
    assert distill(config) == first
    assert {path: path.stat().st_mtime_ns for path in Path(config.output).rglob("*")} == before


def test_a_finished_run_that_was_moved_or_lost_a_student_says_where_they_are(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config("out", epochs=2)
    first = distill(config)
    moved = replace(config, output=f"{config.output}-moved")
    Path(config.output).rename(moved.output)
    result = distill(moved)
    assert result == first | {name: first[name].replace("/out/", "/out-moved/") for name in ("student", "last")}
    weights = Path(result["student"], "model.safetensors").read_bytes()
    shutil.rmtree(result["student"])
    capsys.readouterr()
    again = distill(moved)
    printed = capsys.readouterr().err
    assert "student/best' of a finished training is missing, and is made again from the last checkpoint" in printed
    assert (again["continued_from_epoch"], again["top1"]) == (2, first["top1"])
    assert Path(result["student"], "model.safetensors").read_bytes() == weights
    # Without the last checkpoint nothing is trained unasked.
    shutil.rmtree(result["student"])
    Path(moved.output, "checkpoints", "epoch-00002.pt").unlink()
    assert distill(moved) == again
    assert "to train again, delete '" in capsys.readouterr().err
    # As if it had been killed between the row of an epoch and its checkpoint.
    Path(moved.output, "result.json").unlink()
    again = distill(moved)
    assert "distill: there is a checkpoint of epoch 1 of 2\n" in capsys.readouterr().err
    assert (again["continued_from_epoch"], again["top1"]) == (1, first["top1"])
    rows = [json.loads(line)["epoch"] for line in Path(moved.output, "metrics.jsonl").read_text().splitlines()]
    assert rows == [1, 2]


def test_a_result_of_another_tool_is_not_taken_for_that_of_a_training(make_config: MakeConfig) -> None:
    config = make_config("out", epochs=1)
    Path(config.output).mkdir()
    Path(config.output, "result.json").write_text('{"accuracy": 0.9}')
    with pytest.raises(DatasetError, match=r"out' holds result.json, and no config.json of a distillation"):
        distill(config)
    assert [path.name for path in Path(config.output).iterdir()] == ["result.json"]


def test_a_run_of_the_time_before_settings_were_renamed_is_gone_on_with(make_config: MakeConfig) -> None:
    config = make_config("out", epochs=2)
    distill(config)
    claim = Path(config.output, "config.json")
    document = json.loads(claim.read_text())
    assert document["identity"]["labelled"]["num_images"] == 13
    assert document["identity"]["config"]["labelled"] is True
    settings = document["config"]
    workers = settings.pop("workers")
    # Settings that are new since then.
    del workers["min_size"]
    settings["num_workers"] = workers.pop("size")
    settings |= workers | {"labelled": settings.pop("labeled"), "labelled_split": settings.pop("labeled_split")}
    claim.write_text(json.dumps(document))
    Path(config.output, "result.json").unlink()
    assert distill(from_dict(DistillationConfig, settings))["continued_from_epoch"] == 2
    with pytest.raises(DatasetError, match="made with other settings: labeled is True there, False here"):
        distill(replace(config, labeled=None))


@pytest.mark.parametrize("model", ["teacher", "student"])
def test_a_worker_that_has_other_weights_ends_the_training(make_config: MakeConfig, model: str) -> None:
    plan = plan_distillation(make_config("out"))
    digests = {"teacher": plan.teacher.digest, "student": weight_digest(plan.student.model)} | {model: "0" * 64}
    task = TrainingTask(plan.config, plan.digest, digests["teacher"], digests["student"], plan.images, plan.labeled)
    with pytest.raises(OtherModelError, match=rf"{model}.* differs between the driver \(digest 00000000\)"):
        train_on(task, Group(0, 1, torch.device("cpu")))


def test_an_unlabeled_training(make_config: MakeConfig) -> None:
    result = distill(make_config("out", labeled=None, epochs=2))
    assert result["teacher_top1"] is result["before_top1"] is result["top1"] is result["best_top1"] is None
    assert result["best_epoch"] == 2


def test_another_config_does_not_touch_a_run(make_config: MakeConfig) -> None:
    config = make_config("out", epochs=1)
    distill(config)
    before = {path: path.read_bytes() for path in Path(config.output).rglob("*") if path.is_file()}
    with pytest.raises(
        DatasetError, match=r"out' holds a distillation made with other settings: lr is 0\.01 there, 0\.1 here"
    ):
        distill(make_config("out", epochs=1, lr=0.1))
    assert {path: path.read_bytes() for path in Path(config.output).rglob("*") if path.is_file()} == before


def test_other_images_in_the_same_place_are_not_taken_for_the_old_ones(make_config: MakeConfig, tmp_path: Path) -> None:
    distill(make_config("out", epochs=1))
    write_ragged(tmp_path / "images.parquet", 24)
    with pytest.raises(DatasetError, match="num_images is 23 there, 24 here"):
        distill(make_config("out", epochs=1))


def test_a_loss_that_is_not_finite_ends_at_once(make_config: MakeConfig) -> None:
    config = make_config("out", lr=1e30)
    with pytest.raises(NonFiniteError, match="distillation loss is not finite at step"):
        distill(config)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": "/nowhere/images"}, DatasetError, "/nowhere/images"),
        ({"labeled": "/nowhere/labeled"}, DatasetError, "/nowhere/labeled"),
        ({"student": StudentConfig(depth_pruned=[2])}, ConfigError, "no block 2, the teacher has 2"),
        ({"teacher": ModelConfig(name="vit_tiny_patch16_224")}, ModelError, "has no trained weights"),
        (
            {
                "student": StudentConfig(
                    model=ModelConfig(
                        name="vit_tiny_patch16_224",
                        model_args={"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 2},
                    )
                )
            },
            ConfigError,
            "the student's width is 48 and the teacher's 32",
        ),
        (
            {"student": StudentConfig(model=ModelConfig(name="resnet10t"))},
            ConfigError,
            "a ResNet, does not read the teacher's grid of 4x4 patches and has no tokens",
        ),
        (
            {"student": StudentConfig(model=ModelConfig(name="resnet10t")), "token_weight": 0.0, "batch_size": 1},
            ConfigError,
            "a ResNet, has BatchNorm, but batch_size 1 leaves 1 of 23 images per step",
        ),
        ({"output": "/proc/nowhere"}, DatasetError, "cannot write to '/proc/nowhere'"),
        ({"output": "nowhere://bucket/out"}, DatasetError, "nowhere://bucket/out"),
    ],
)
def test_impossible_runs_write_nothing(
    make_config: MakeConfig, changes: dict[str, Any], error: type[PipelineError], message: str
) -> None:
    config = make_config("out", **changes)
    with pytest.raises(error, match=message) as raised:
        distill(config)
    assert "\n" not in str(raised.value)
    assert not Path(config.output).exists()


def test_workers_that_leave_no_cpu_to_read_images_are_refused(make_config: MakeConfig) -> None:
    config = make_config("out", workers=replace(HERE, size=4), cache_gb=0.0)
    with pytest.raises(ConfigError, match="4 workers would hold 4 of 4 CPUs and leave none to read images"):
        distill(config)
    assert not list(Path(config.output).glob("*"))


def test_images_without_labels_cannot_be_scored_nor_give_hard_labels(make_config: MakeConfig, tmp_path: Path) -> None:
    write_ragged(tmp_path / "bare.parquet", 5, labels=False)
    for name in ("labeled", "images"):
        config = make_config("out", **{name: str(tmp_path / "bare.parquet")}, label_weight=1.0)
        with pytest.raises(DatasetError, match=r"bare\.parquet' has no labels"):
            distill(config)
        assert not list(Path(config.output).glob("*"))


def test_an_image_that_cannot_be_decoded_is_named(make_config: MakeConfig, tmp_path: Path) -> None:
    write_ragged(tmp_path / "broken.parquet", 5)
    content = (tmp_path / "broken.parquet").read_bytes()
    (tmp_path / "broken.parquet").write_bytes(content.replace(b"IHDR", b"XHDR", 1))
    with pytest.raises(DatasetError, match="broken"):
        distill(make_config("out", images=str(tmp_path / "broken.parquet")))
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("name", ["vit_base_patch16_gap_224", "vit_base_patch16_siglip_224"])
def test_a_teacher_without_a_cls_token_is_read_on_kept_tokens(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, **TINY)  # type: ignore[arg-type]
    save_model(model, tmp_path / "teacher", class_names=NAMES, mean=HALF, std=HALF)
    config = maker(tmp_path, tmp_path / "teacher")("out", epochs=1)
    distill(config)
    (row,) = metrics(config.output)
    assert row["tokens"] > 0
    assert row["images"] == 23


def test_a_teacher_that_reads_whole_images(whole_folder: Path, tmp_path: Path) -> None:
    make = maker(tmp_path, whole_folder)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8)
    write_images(str(tmp_path / "real.parquet"), pixels, [row % 10 for row in range(9)], NAMES)
    changes = {
        "images": str(tmp_path / "real.parquet"),
        "labeled": None,
        "student": StudentConfig(model=ModelConfig(name="resnet10t")),
    }
    with pytest.raises(ConfigError, match="the teacher, a SwinTransformer, reads filled images and has no tokens"):
        distill(make("out", **changes))
    config = make("out", **changes, token_weight=0.0, epochs=2)
    distill(config)
    first, last = metrics(config.output)
    assert last["kl"] < first["kl"]
