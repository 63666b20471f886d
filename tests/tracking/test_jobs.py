"""Jobs that report to TensorBoard."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import from_dict
from pipeline.distillation import DistillationConfig, distill
from pipeline.distillation.plan import plan_distillation
from pipeline.synthesis import synthesize
from pipeline.tracking.config import TrackingConfig
from tests.distillation.conftest import write_ragged
from tests.synthesis.conftest import make_config
from tests.tracking.reading import read_scalars, read_texts

pytestmark = [
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs the extra tensorboard"),
]


def training(teacher: Path, folder: Path, **changes: Any) -> DistillationConfig:
    values = {
        "teacher": {"name": f"local-dir:{teacher}"},
        "student": {"depth_pruned": [1]},
        "images": str(folder / "images.parquet"),
        "labeled": str(folder / "images.parquet"),
        "output": str(folder / "student"),
        "epochs": 3,
        "augment": None,
        "workers": {"size": 0, "device": "cpu"},
    }
    return from_dict(DistillationConfig, values | changes)


def test_a_training_reports_each_epoch(tiny_folder: Path, tmp_path: Path) -> None:
    write_ragged(tmp_path / "images.parquet", 23)
    silent = training(tiny_folder, tmp_path)
    config = training(tiny_folder, tmp_path, tracking={"tensorboard": str(tmp_path / "tb"), "run_name": "one"})
    assert plan_distillation(config).digest == plan_distillation(silent).digest
    result = distill(config)
    found = read_scalars(str(tmp_path / "tb" / "one"), tmp_path)
    for name in ("loss", "kl", "tokens", "labels", "lr", "top1", "seconds"):
        assert [step for step, _ in found[name]] == [1, 2, 3], name
    assert found["loss"][-1][1] == pytest.approx(result["loss"])
    assert found["result/top1"] == [(3, pytest.approx(result["top1"]))]
    (text,) = read_texts(str(tmp_path / "tb" / "one"), tmp_path)
    assert "| student.depth_pruned | `[1]` |" in text
    assert "tracking" not in text


def test_a_synthesis_reports_shards_and_goes_on_where_it_was(tiny_folder: Path, tmp_path: Path) -> None:
    config = make_config(tiny_folder, tmp_path / "out", tracking={"tensorboard": str(tmp_path / "tb")})
    assert config.tracking == TrackingConfig(tensorboard=str(tmp_path / "tb"))
    digest = synthesize(config)["digest"]
    run = str(tmp_path / "tb" / f"synthesize-{digest[:8]}")
    before = read_scalars(run, tmp_path)
    assert before["shards_done"][-1] == (6, 6.0)
    assert not [name for name in before if name.startswith("result/workers")]
    assert before["images"][-1] == (6, 30.0)
    assert {"images_per_s", "class_loss", "shards_failed", "result/num_images_made"} <= before.keys()
    # With nothing to do there is nothing to report, and after a loss the last shard counts again.
    synthesize(config)
    assert read_scalars(run, tmp_path) == before
    (tmp_path / "out" / "data" / f"part-00003-{digest[:8]}.parquet").unlink()
    assert synthesize(config)["complete"] is True
    after = read_scalars(run, tmp_path)
    assert {name: after[name] for name in before if not name.startswith("result/")} == {
        name: before[name] for name in before if not name.startswith("result/")
    }
    assert after["result/num_images_made"] == [(6, 30.0), (7, 5.0)]
