"""cluster.yaml: Ray's own validation of the launcher's part, EC2's own of what Ray passes on unread."""

import re
import shlex
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import drain_node

from pipeline.cluster.autoscaler import NodeType, from_launcher

ROOT = Path(__file__).parents[2]
EC2 = botocore.session.get_session().get_service_model("ec2")


CLOUDS = ["cluster.yaml", "examples/cluster-gcp.yaml"]


def load(name: str = "cluster.yaml") -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


def node_config_errors(node_config: dict[str, Any]) -> list[str]:
    """Return EC2's objections to such a request for a machine: unknown keys, wrong types, unknown values."""
    request = {**node_config, "MinCount": 1, "MaxCount": 1}
    report = ParamValidator().validate(request, EC2.operation_model("RunInstances").input_shape)
    errors = [report.generate_report()] if report.has_errors() else []
    market = node_config.get("InstanceMarketOptions", {})
    chosen = {
        "InstanceType": node_config.get("InstanceType"),
        "MarketType": market.get("MarketType"),
        "SpotInstanceType": market.get("SpotOptions", {}).get("SpotInstanceType"),
        "InstanceInterruptionBehavior": market.get("SpotOptions", {}).get("InstanceInterruptionBehavior"),
    }
    for shape, value in chosen.items():
        if value is not None and value not in EC2.shape_for(shape).enum:  # type: ignore[attr-defined]
            errors.append(f"{shape} is {value!r}")
    if chosen["InstanceType"] is None:
        errors.append("InstanceType is missing")
    return errors


@pytest.mark.parametrize("name", CLOUDS)
def test_ray_accepts_the_cluster(name: str) -> None:
    prepared = prepare_config(load(name))
    validate_config(prepared)
    # Left out, it would be Ray's default: a nightly wheel.
    assert not any("ray-wheels" in command for command in prepared["setup_commands"])


@pytest.mark.parametrize("node_type", ["head", "gpu", "gpu_on_demand"])
def test_ec2_accepts_the_node(node_type: str) -> None:
    assert node_config_errors(load()["available_node_types"][node_type]["node_config"]) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"InstanceType": "g6.huge"}, "g6.huge"),
        ({"InstanceTyp": "g6.xlarge"}, "InstanceTyp"),
        ({"InstanceMarketOptions": {"MarketType": "sport"}}, "sport"),
        ({"BlockDeviceMappings": [{"Ebs": {"VolumeSize": "150"}}]}, "VolumeSize"),
    ],
)
def test_the_check_sees_mistakes(change: dict[str, Any], said: str) -> None:
    node_config = load()["available_node_types"]["gpu"]["node_config"] | change
    assert said in " ".join(node_config_errors(node_config))


@pytest.mark.parametrize("name", CLOUDS)
def test_head_is_on_demand_and_takes_no_work(name: str) -> None:
    cluster = load(name)
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert not {"InstanceMarketOptions", "scheduling"} & head["node_config"].keys()


def test_workers_are_spot_and_come_only_when_asked_for() -> None:
    cluster = load()
    gpu = cluster["available_node_types"]["gpu"]
    assert gpu["min_workers"] == 0
    assert gpu["max_workers"] == cluster["max_workers"] > 0
    assert gpu["resources"]["GPU"] == 1
    assert gpu["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert cluster["provider"]["cache_stopped_nodes"] is False
    # The full price is paid by those alone who raise it.
    assert cluster["available_node_types"]["gpu_on_demand"]["max_workers"] == 0


def test_googles_workers_are_spot_and_may_use_the_bucket() -> None:
    gpu = load("examples/cluster-gcp.yaml")["available_node_types"]["gpu"]
    assert gpu["min_workers"] == 0
    assert gpu["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    # Ray gives this account to the head alone.
    assert gpu["node_config"]["serviceAccounts"][0]["email"].startswith("ray-autoscaler-sa-v1@")


@pytest.mark.parametrize("name", CLOUDS)
def test_all_machines_are_asked_for_at_once(name: str) -> None:
    cluster = load(name)
    # The autoscaler starts `upscaling_speed` machines for each that runs, and for one where none does.
    assert cluster["upscaling_speed"] >= cluster["max_workers"]
    assert from_launcher(cluster).types == [NodeType({"CPU": 4, "GPU": 1}, 8, {"market": "spot"})]


@pytest.mark.parametrize(("name", "cloud", "notice_s"), [(CLOUDS[0], "aws", 120), (CLOUDS[1], "gcp", 30)])
def test_a_spot_machine_that_is_taken_back_is_drained(name: str, cloud: str, notice_s: int) -> None:
    (command,) = [line for line in load(name)["worker_start_ray_commands"] if "spot_notice" in line]
    words = shlex.split(command)
    # Redirected and in the background, or the launcher's connection would wait for it.
    assert words[:2] == ["nohup", "setsid"]
    assert words[-6:] == [">", "/tmp/spot_notice.log", "2>&1", "<", "/dev/null", "&"]
    drain = words[words.index("ray") : -6]
    context = drain_node.make_context("drain-node", drain[2:])
    assert words[2 : words.index("ray")] == ["python", "-m", "pipeline.spot_notice", cloud]
    assert drain[:2] == ["ray", "drain-node"]
    assert context.params["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    # Asked every five seconds, and answered within five.
    assert notice_s / 2 < context.params["deadline_remaining_seconds"] <= notice_s - 10


@pytest.mark.parametrize("name", CLOUDS)
def test_every_node_asks_for_the_token(name: str) -> None:
    cluster = load(name)
    token = next(remote for remote, local in cluster["file_mounts"].items() if local == "~/.ray/auth_token")
    options = cluster["docker"]["run_options"]
    assert "-e RAY_AUTH_MODE=token" in options
    assert f"-e RAY_AUTH_TOKEN_PATH={token}" in options
    assert "--dashboard-host=127.0.0.1" in " ".join(cluster["head_start_ray_commands"])


@pytest.mark.parametrize("name", CLOUDS)
def test_every_node_has_the_pinned_ray(name: str) -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    cluster = load(name)
    assert cluster["docker"]["image"] == f"rayproject/ray:{pins['ray']}-py311"
    assert "-c constraints.txt" in cluster["setup_commands"][0]
    assert f"ray[default]=={pins['ray']}" in (ROOT / name).read_text()


def submitted_commands(text: str) -> list[list[str]]:
    """The entry points of the `ray job submit` commands in a text, comment signs and line ends taken away."""
    plain = re.sub(r"\\\n#?\s*", " ", text)
    return [shlex.split(line.split(" -- ", 1)[1]) for line in re.findall(r"ray job submit .* -- .*", plain)]


@pytest.mark.parametrize(("name", "store"), [(CLOUDS[0], "s3://"), (CLOUDS[1], "gs://")])
def test_the_command_it_shows_writes_to_an_object_store(name: str, store: str) -> None:
    (command,) = submitted_commands((ROOT / name).read_text())
    assert command[:3] == ["python", "-m", "jobs.synthesize"]
    assert command[command.index("--output") + 1].startswith(store)
