import json
import re
from pathlib import Path

import pyarrow as pa
import pytest

from jobs import synthesize
from pipeline.dataset import schema, store
from pipeline.synthesis.plan import plan_synthesis
from tests.synthesis.conftest import make_config, write_config


def test_our_own_errors_are_one_line_within_seconds(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    good = ["--config", str(write_config(tmp_path, tiny_folder, str(tmp_path / "out")))]
    attempts = {
        "ConfigError: .*color": [*good, "--color", "red"],
        "ConfigError: .*shard_size": [*good, "--shard_size", "big"],
        "ConfigError: .*fewer than one": [*good, "--inversion.stop_fractions", "[0.9, 0.99]"],
        "ConfigError: .*gone.yaml": ["--config", "gone.yaml"],
        "DatasetError: cannot write to .*file/out": [*good, "--output", str(tmp_path / "file" / "out")],
        "ModelError: .*vit_unheard_of": [*good, "--teacher.name", "vit_unheard_of", "--teacher.pretrained", "true"],
        "CheckpointError: .*gone.pth": [
            *good,
            *("--teacher.name", "vit_tiny_patch16_224", "--teacher.checkpoint", "gone.pth"),
        ],
    }
    for message, flags in attempts.items():
        assert synthesize.main(flags) == 1
        streams = capsys.readouterr()
        assert streams.out == ""
        assert len(streams.err.strip().splitlines()) == 1
        assert re.search(f"^error: {message}", streams.err), streams.err
    assert not (tmp_path / "out").exists()


def test_dry_run_has_its_own_flag(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    plan = plan_synthesis(make_config(tiny_folder, output))
    for shard in plan.shards:
        facts = {"digest": plan.digest, "shard_id": str(shard["shard_id"])}
        part = schema.to_parquet(pa.table({"label": shard["labels"]}).replace_schema_metadata(facts))
        store.write_part(str(output), shard["shard_id"], plan.digest, part)
    file = write_config(tmp_path, tiny_folder, str(output))
    assert synthesize.main(["--config", str(file), "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["num_images_to_make"] == 0
