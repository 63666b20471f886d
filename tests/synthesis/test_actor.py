"""The actor's classes called directly, without Ray."""

import errno
import io
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch

from pipeline.dataset import schema, store
from pipeline.errors import ConfigError, ModelError, NonFiniteError, OtherModelError
from pipeline.inversion import FeaturePrior, Teacher, score, start_images
from pipeline.models import load_model, save_model
from pipeline.synthesis import Inverter, plan_shards
from pipeline.synthesis.identity import identity, image_seed
from pipeline.synthesis.networks import load_networks
from pipeline.synthesis.outcome import Outcome
from pipeline.synthesis.shards import Shard
from pipeline.synthesis.writer import PartWriter
from tests.conftest import HALF, make_tiny_model
from tests.synthesis.conftest import ROOT, make_config


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.retrying.RETRY_DELAYS_S", (0.0, 0.0))


def batch_of(shards: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [shard[name] for shard in shards] for name in shards[0]}


def test_rows_are_the_contracts_and_scored_as_stored(tiny_folder: Path) -> None:
    config = make_config(tiny_folder, "unused")
    (table,) = Inverter(config)(batch_of(plan_shards(config)[1:2]))
    assert table.schema.equals(schema.arrow_schema([]), check_metadata=False)
    assert table["label"].to_pylist() == [1, 2, 2, 2, 3]
    assert table["shard_id"].to_pylist() == [1] * 5
    assert {len(kept) for kept in table["keep_indices"].to_pylist()} == {7}  # 16 → 11 → 7
    loaded = load_model(config.teacher)
    teacher = Teacher(loaded.model, mean=loaded.mean, std=loaded.std)
    pixels = torch.stack(
        [
            torch.from_numpy(schema.decode_image(image["bytes"], image["path"]).copy())
            for image in table["image"].to_pylist()
        ]
    )
    targets, kept = torch.tensor(table["label"].to_pylist()), torch.tensor(table["keep_indices"].to_pylist())
    loss, confidence, prediction = score(teacher, pixels, kept, targets)
    np.testing.assert_allclose(table["class_loss"].to_numpy(), loss, rtol=1e-5)
    np.testing.assert_allclose(table["teacher_confidence"].to_numpy(), confidence, rtol=1e-5)
    assert table["teacher_prediction"].to_pylist() == prediction.tolist()


def test_stopped_patches_hold_the_mean_color(tiny_folder: Path) -> None:
    config = make_config(tiny_folder, "unused")
    (table,) = Inverter(config)(batch_of(plan_shards(config)[:1]))
    for image, kept in zip(table["image"].to_pylist(), table["keep_indices"].to_pylist(), strict=True):
        pixels = schema.decode_image(image["bytes"], image["path"])
        grid = pixels.reshape(4, 8, 4, 8, 3).transpose(0, 2, 1, 3, 4).reshape(16, -1)
        stopped = [patch for patch in range(16) if patch not in kept]
        assert set(grid[stopped].ravel().tolist()) == {128}
        assert all(len(set(grid[patch].tolist())) > 10 for patch in kept)


def test_a_shard_does_not_depend_on_how_it_is_batched(tiny_folder: Path) -> None:
    config = make_config(tiny_folder, "unused")
    shards = plan_shards(config)[:3]
    together = list(Inverter(config)(batch_of(shards)))
    alone = [next(iter(Inverter(config)(batch_of([shard])))) for shard in reversed(shards)]
    assert together == alone[::-1]


def test_gray_teacher_makes_gray_png(tmp_path: Path) -> None:
    save_model(make_tiny_model(in_chans=1), tmp_path, class_names=list("abcdefghij"), mean=(0.5,), std=(0.5,))
    config = make_config(tmp_path, "unused")
    (table,) = Inverter(config)(batch_of(plan_shards(config)[:1]))
    code = table["image"][0].as_py()["bytes"]
    assert code[25] == 0  # PNG color type: gray
    assert schema.decode_image(code, "x").shape == (32, 32, 1)


def test_noise_to_compare_with(tiny_folder: Path) -> None:
    config = make_config(tiny_folder, "unused", inversion={"iterations": 0, "stop_steps": [], "stop_fractions": []})
    shard = plan_shards(config)[0]
    inverter = Inverter(config)
    (table,) = inverter(batch_of([shard]))
    seeds = [image_seed(inverter.digest, 0, image_id) for image_id in shard["image_ids"]]
    start = inverter.teacher.to_uint8(start_images(inverter.teacher, seeds)).numpy()
    stored = [schema.decode_image(cell["bytes"], cell["path"]) for cell in table["image"].to_pylist()]
    assert np.array_equal(np.stack(stored), start)
    assert table["label"].to_pylist() == shard["labels"]


def test_feature_prior_takes_part(tiny_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    cnn = timm.create_model("resnet10t", num_classes=4)
    save_model(cnn, tmp_path, class_names=list("abcd"), mean=HALF, std=HALF)
    schedule = {"iterations": 3, "stop_steps": [1], "stop_fractions": [0.5]}
    plain = make_config(tiny_folder, "unused", inversion=schedule)
    guided = make_config(
        tiny_folder,
        "unused",
        inversion={**schedule, "feature_prior": 1.0},
        feature_model={"name": f"local-dir:{tmp_path}"},
    )
    shard = batch_of(plan_shards(plain)[:1])
    assert Inverter(plain).digest != Inverter(guided).digest
    assert next(iter(Inverter(guided)(shard)))["image"] != next(iter(Inverter(plain)(shard)))["image"]


def test_the_feature_model_reads_images_in_its_own_normalization(tiny_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    cnn = timm.create_model("resnet10t", num_classes=4).eval()
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    digests = []
    for name, its_own in (("other", (mean, std)), ("same", (HALF, HALF))):
        save_model(cnn, tmp_path / name, class_names=list("abcd"), mean=its_own[0], std=its_own[1])
        model = {"name": f"local-dir:{tmp_path / name}"}
        inversion = {"iterations": 3, "stop_steps": [], "stop_fractions": [], "feature_prior": 1.0}
        config = make_config(tiny_folder, "unused", inversion=inversion, feature_model=model)
        networks = load_networks(config)
        digests.append(identity(config, networks))
        pixels = torch.rand(2, 3, 32, 32)
        of_teacher, own = (
            (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
            for mean, std in ((HALF, HALF), its_own)
        )
        torch.testing.assert_close(networks.feature_network(of_teacher), cnn(own))
        FeaturePrior(networks.feature_network)
    # Where both are the same, datasets of earlier versions stay what they are.
    assert digests[0]["feature_model_renormalizes"] is True
    assert "feature_model_renormalizes" not in digests[1]


def test_feature_model_without_batchnorm_is_refused(tiny_folder: Path) -> None:
    schedule = {"iterations": 3, "stop_steps": [1], "stop_fractions": [0.5], "feature_prior": 1.0}
    model = {"name": f"local-dir:{tiny_folder}"}
    with pytest.raises(ModelError, match="no BatchNorm2d"):
        Inverter(make_config(tiny_folder, "unused", inversion=schedule, feature_model=model))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
def test_adversarial_term_takes_part(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    student = make_tiny_model(seed=3) if name.startswith("vit") else timm.create_model(name, num_classes=10)
    save_model(student, tmp_path, class_names=list("abcdefghij"), mean=(0.4,) * 3, std=HALF)
    schedule = {"iterations": 3, "stop_steps": [1], "stop_fractions": [0.5]}
    plain = make_config(tiny_folder, "unused", inversion=schedule)
    against = {"inversion": {**schedule, "adversarial": 1.0}, "student": {"name": f"local-dir:{tmp_path}"}}
    driven = Inverter(make_config(tiny_folder, "unused", **against))
    (network,) = [term.network for term in driven.terms if term.name == "adversarial"]
    assert network == ("kept" if name.startswith("vit") else "whole")
    shard = batch_of(plan_shards(plain)[:1])
    assert Inverter(plain).digest != driven.digest
    assert next(iter(driven(shard)))["image"] != next(iter(Inverter(plain)(shard)))["image"]


def test_a_student_of_other_classes_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    save_model(make_tiny_model(num_classes=4), tmp_path, class_names=list("abcd"), mean=HALF, std=HALF)
    schedule = {"iterations": 3, "stop_steps": [1], "stop_fractions": [0.5], "adversarial": 1.0}
    student = {"name": f"local-dir:{tmp_path}"}
    with pytest.raises(ModelError, match=r"student VisionTransformer outputs 4 values per image: .* 10 classes"):
        Inverter(make_config(tiny_folder, "unused", inversion=schedule, student=student))


def test_a_student_with_the_classes_in_another_order_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    names = [f"class {letter}" for letter in "jihgfedcba"]
    save_model(make_tiny_model(seed=3), tmp_path, class_names=names, mean=HALF, std=HALF)
    schedule = {"iterations": 3, "stop_steps": [1], "stop_fractions": [0.5], "adversarial": 1.0}
    student = {"name": f"local-dir:{tmp_path}"}
    with pytest.raises(ModelError, match="has the teacher's classes in another order: class 'class j' is"):
        Inverter(make_config(tiny_folder, "unused", inversion=schedule, student=student))


def nan_teacher(folder: Path) -> Path:
    """A teacher that can never say class 4, though its weights are finite: the loss there is infinite at once."""
    model = make_tiny_model()
    lowest = torch.finfo(torch.float32).min
    with torch.no_grad():
        # Feature 0 of every token is 1.
        model.get_parameter("norm.weight")[0], model.get_parameter("norm.bias")[0] = 0, 1
        model.get_parameter("head.weight")[4, 0] = model.get_parameter("head.bias")[4] = lowest
    save_model(model, folder, class_names=list("abcdefghij"), mean=HALF, std=HALF)
    return folder


def test_not_finite_names_shard_step_and_term(tmp_path: Path) -> None:
    config = make_config(nan_teacher(tmp_path), "unused")
    with pytest.raises(NonFiniteError, match="shard 2: class_loss is not finite at step 0"):
        list(Inverter(config)(batch_of(plan_shards(config)[2:3])))


def written(output: Path) -> list[str]:
    return sorted(str(file.relative_to(output)) for file in output.rglob("*") if file.is_file())


def make_writer(teacher: Path, output: Path) -> PartWriter:
    config = make_config(teacher, output)
    return PartWriter(config, Inverter(config).digest)


def outcomes_of(writer: PartWriter, shards: Sequence[Shard]) -> list[Outcome]:
    """Write shards, and return the outcomes as the driver gets them."""
    return [writer.write_shard(**shard) for shard in shards]


def test_part_tells_what_it_is(tiny_folder: Path, tmp_path: Path) -> None:
    writer = make_writer(tiny_folder, tmp_path)
    store.write_failure(str(tmp_path), 1, {"reason": "an earlier try"})
    (outcome,) = outcomes_of(writer, plan_shards(writer.config)[1:2])
    assert outcome.shard_id == 1
    assert outcome.num_images == 5
    assert outcome.error == ""
    assert outcome.num_steps == [8] * 5
    assert written(tmp_path) == [f"data/part-00001-{writer.digest[:8]}.parquet"]
    footer = pq.read_metadata(tmp_path / written(tmp_path)[0])
    assert footer.metadata is not None
    assert footer.metadata[b"digest"].decode() == writer.digest
    assert footer.metadata[b"shard_id"] == b"1"
    assert b"halvings" not in footer.metadata
    assert b"num_steps" not in footer.metadata


def test_a_split_because_memory_ran_out_is_recorded(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = make_writer(tiny_folder, tmp_path)
    assert isinstance(writer.ready_teacher, Teacher)
    forward = writer.ready_teacher.forward_patches

    def small_memory(patches: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        if len(patches) > 2:
            raise torch.OutOfMemoryError("more than two images")
        return forward(patches, positions)

    monkeypatch.setattr(writer.ready_teacher, "forward_patches", small_memory)
    outcomes_of(writer, plan_shards(writer.config)[:1])
    footer = pq.read_metadata(tmp_path / written(tmp_path)[0])
    assert footer.metadata is not None
    assert json.loads(footer.metadata[b"halvings"]) == [[0, 3], [0, 2], [4, 2]]


def test_not_finite_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    writer = make_writer(nan_teacher(tmp_path / "teacher"), tmp_path / "out")
    outcomes = outcomes_of(writer, plan_shards(writer.config)[1:4])
    assert [outcome.error for outcome in outcomes] == ["", "NonFiniteError", ""]
    progress = store.read_progress(str(tmp_path / "out"), 4, writer.digest)
    assert progress.done == [1, 3]
    assert progress.failed[2]["reason"] == "shard 2: class_loss is not finite at step 0"
    assert progress.failed[2]["labels"] == [3, 4]


# In a process of its own: a limit on this one's files would hold for the test runner's too.
ON_A_FULL_DISK = """
import json, resource, signal, sys
from pathlib import Path
from pipeline.storage import retrying
from pipeline.synthesis import plan_shards
from tests.synthesis.test_actor import make_writer, outcomes_of

retrying.RETRY_DELAYS_S = (0.0, 0.0)
writer = make_writer(Path(sys.argv[1]), Path(sys.argv[2]))
shards = plan_shards(writer.config)[:1]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
(outcome,) = outcomes_of(writer, shards)
print(json.dumps([outcome.error, outcome.storage_failed]))
"""


def test_full_disk_leaves_no_part_and_says_so(tiny_folder: Path, tmp_path: Path) -> None:
    """No file of more than 2 kB can be written, as on a full disk."""
    command = [sys.executable, "-c", ON_A_FULL_DISK, str(tiny_folder), str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout.splitlines()[-1]) == ["OSError", True]
    assert written(tmp_path) == ["failed/shard-00000.json"]
    record = json.loads((tmp_path / "failed" / "shard-00000.json").read_text())
    assert "File too large" in record["reason"]


def test_output_that_vanished_is_reported_in_the_row(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    writer = make_writer(tiny_folder, tmp_path / "file" / "out")
    (outcome,) = outcomes_of(writer, plan_shards(writer.config)[:1])
    assert outcome.error == "NotADirectoryError"
    assert "could not be recorded" in outcome.reason


def test_a_passing_trouble_is_retried(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, write_part = make_writer(tiny_folder, tmp_path / "out"), store.write_part
    errors = [OSError(errno.ENOSPC, "No space left on device"), ConnectionResetError("reset by peer")]

    def write(*arguments: Any) -> None:
        if errors:
            raise errors.pop()
        write_part(*arguments)

    monkeypatch.setattr(store, "write_part", write)
    (outcome,) = outcomes_of(writer, plan_shards(writer.config)[:1])
    assert (outcome.error, errors) == ("", [])


def test_another_teacher_than_the_drivers(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OtherModelError, match=r"^teacher .* differs between the driver"):
        PartWriter(make_config(tiny_folder, tmp_path), "0" * 64)


def test_parts_are_the_same_bytes_each_time(tiny_folder: Path, tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        writer = make_writer(tiny_folder, tmp_path / name)
        outcomes_of(writer, plan_shards(writer.config)[:1])
        contents.append((tmp_path / name / written(tmp_path / name)[0]).read_bytes())
    assert contents[0] == contents[1]
    assert pq.read_table(io.BytesIO(contents[0])).num_rows == 5


REBIRTH = {"images_per_class": 4, "shard_size": 8, "inversion": {"iterations": 9, "rebirth": 4}}


def test_images_by_rebirth_are_images_of_their_own(tiny_folder: Path) -> None:
    config = make_config(tiny_folder, "unused", **REBIRTH)
    shard = plan_shards(config)[0]
    (table,) = Inverter(config)(batch_of([shard]))
    assert table["image_id"].to_pylist() == shard["image_ids"]
    assert table["label"].to_pylist() == [0] * 4 + [1] * 4
    kept = table["keep_indices"].to_pylist()
    for start in (0, 4):
        assert sorted(patch for row in kept[start : start + 4] for patch in row) == list(range(16))
    # Stored scores are those of the stored images.
    loaded = load_model(config.teacher)
    teacher = Teacher(loaded.model, mean=loaded.mean, std=loaded.std)
    pixels = torch.from_numpy(np.stack([schema.decode_image(row["bytes"], "x") for row in table["image"].to_pylist()]))
    loss, _, _ = score(teacher, pixels, torch.tensor(kept), torch.tensor(table["label"].to_pylist()))
    np.testing.assert_allclose(table["class_loss"].to_numpy(), loss, rtol=1e-5)


def test_a_start_makes_the_same_images_in_any_shard(tiny_folder: Path) -> None:
    config = make_config(tiny_folder, "unused", **REBIRTH)
    shard = plan_shards(config)[0]
    (whole,) = Inverter(config)(batch_of([shard]))
    half = {**shard, "labels": shard["labels"][4:], "image_ids": shard["image_ids"][4:]}
    (alone,) = Inverter(config)(batch_of([half]))
    assert alone["keep_indices"].to_pylist() == whole["keep_indices"].to_pylist()[4:]


def test_rows_that_cannot_come_of_one_start(tiny_folder: Path) -> None:
    config = make_config(tiny_folder, "unused", **REBIRTH)
    for labels in ([0, 0, 0, 1], [0, 0, 0]):
        shard = {"shard_id": 0, "labels": labels, "image_ids": [str(row) for row in range(len(labels))]}
        with pytest.raises(ConfigError, match="rebirth 4 needs as many rows of one label"):
            list(Inverter(config)(batch_of([shard])))


def test_steps_of_images_that_end_early_are_recorded(tiny_folder: Path, tmp_path: Path) -> None:
    end = {"adaptive_end": {"confidence": 0.001, "hold_steps": 2}}
    inversion = {"iterations": 30, "stop_steps": [2, 4], "stop_fractions": [0.3, 0.3], **end}
    config = make_config(tiny_folder, tmp_path, inversion=inversion)
    writer = PartWriter(config, Inverter(config).digest)
    (outcome,) = outcomes_of(writer, plan_shards(config)[:1])
    assert len(outcome.num_steps) == 5
    assert max(outcome.num_steps) < 30
    footer = pq.read_metadata(tmp_path / written(tmp_path)[0])
    assert footer.metadata is not None
    assert json.loads(footer.metadata[b"num_steps"]) == outcome.num_steps
