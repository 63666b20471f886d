"""The jobs that read datasets take a compacted one for the same."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.compaction.plan import plan_compaction
from pipeline.compaction.run import _describe
from pipeline.dataset import store
from pipeline.distillation import DistillationConfig, StudentConfig, distill
from pipeline.models import ModelConfig
from pipeline.quantization import BitWidths, CalibrationConfig
from pipeline.quantization.distributed import calibrate_ranges
from pipeline.quantization.plan import plan_calibration
from pipeline.workers import WorkersConfig
from tests.compaction.conftest import make_config

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def compacted(dataset: str, tmp_path: Path) -> str:
    """The dataset compacted in this process."""
    plan = plan_compaction(make_config(dataset, tmp_path / "compact"))
    store.write_manifest(plan.merger.output, plan.manifest)
    _describe(plan, [plan.merger.merge(shard_ids) for shard_ids in plan.files])
    return plan.merger.output


def test_a_calibration_has_the_same_digest_and_ranges(dataset: str, compacted: str, tiny_folder: Path) -> None:
    plans = [
        plan_calibration(
            CalibrationConfig(
                teacher=ModelConfig(name=f"local-dir:{tiny_folder}"),
                images=images,
                output=f"{images}-calibration",
                settings=[BitWidths()],
                workers=WorkersConfig(size=0),
                max_images=15,
                batch_size=4,
                allow_other_teacher=True,
            )
        )
        for images in (dataset, compacted)
    ]
    assert plans[0].document["digest"] == plans[1].document["digest"]
    first, second = (calibrate_ranges(plan).ranges for plan in plans)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_distillation_gives_the_same_student(
    in_memory: bool, dataset: str, compacted: str, tiny_folder: Path
) -> None:
    results = [
        distill(
            DistillationConfig(
                teacher=ModelConfig(name=f"local-dir:{tiny_folder}"),
                student=StudentConfig(depth_pruned=[1]),
                images=images,
                output=f"{images}-student",
                epochs=1,
                batch_size=8,
                workers=WorkersConfig(size=0, device="cpu"),
                cache_gb=1 if in_memory else 0,
            )
        )
        for images in (dataset, compacted)
    ]
    configs = [json.loads(Path(f"{images}-student", "config.json").read_text()) for images in (dataset, compacted)]
    assert configs[0]["digest"] == configs[1]["digest"]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]
