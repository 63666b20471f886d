"""Which nodes the pool uses, how many actors they have room for, and how many it starts with."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray._private.label_utils import validate_fallback_strategy, validate_label_selector

from pipeline.cluster.autoscaler import NodeTypes, node_types
from pipeline.config import from_dict, parse_config, to_dict
from pipeline.errors import ConfigError
from pipeline.synthesis import PoolConfig, SynthesisConfig, synthesize
from pipeline.synthesis.actor import limit_memory, memory_share
from pipeline.synthesis.capacity import Needs, describe_choice, seats
from pipeline.synthesis.devices import Device
from pipeline.synthesis.holders import hold_gpus
from pipeline.synthesis.pool import pool_options
from pipeline.synthesis.selectors import check_selectors, matches, ray_options
from tests.conftest import requires_gpu
from tests.synthesis.conftest import make_config

SPOT, ON_DEMAND = {"market": "spot"}, {"market": "on-demand"}


@pytest.mark.parametrize(
    ("value", "selected"),
    [("a", "a"), ("!a", "b-"), ("in(a, b)", "ab"), ("in(a,b)", "ab"), ("!in(a, b)", "-"), ("!in(c)", "ab-")],
)
def test_a_node_is_selected_by_its_labels(value: str, selected: str) -> None:
    labels = {"a": {"kind": "a"}, "b": {"kind": "b"}, "-": {}}
    assert "".join(name for name, given in labels.items() if matches(given, {"kind": value})) == selected
    assert all(matches(given, {}) for given in labels.values())


@pytest.mark.parametrize(
    "value", ["spot", "!GPU", "in(A1, B-2)", "!in(spot,on-demand)", "-spot", "spot_", "in()", "in(spot,", "!!a", "a b"]
)
@pytest.mark.parametrize("label", ["kind", "ray.io/market-type", "cloud.google.com/gke-spot", "a_"])
def test_what_ray_refuses_is_refused_before(label: str, value: str) -> None:
    refused = False
    try:
        check_selectors({label: value}, [])
    except ConfigError:
        refused = True
    assert refused == (validate_label_selector({label: value}) is not None)


def test_retired_nodes_are_avoided_by_every_selector() -> None:
    assert ray_options([]) == {}
    assert ray_options([], ["n1"]) == {"label_selector": {"ray.io/node-id": "!in(n1)"}}
    options = ray_options([SPOT, ON_DEMAND, {}], ["n1", "n2"])
    avoided = {"ray.io/node-id": "!in(n1, n2)"}
    assert options["label_selector"] == SPOT | avoided
    others: Any = options["fallback_strategy"]
    assert others == [{"label_selector": ON_DEMAND | avoided}, {"label_selector": avoided}]
    assert validate_fallback_strategy(others) is None


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("avoided", [(), ("f" * 56,)])
def test_ray_tries_the_selectors_in_turn(avoided: tuple[str, ...]) -> None:
    # The cluster of the tests has no such labels.
    options: Any = ray_options([SPOT, ON_DEMAND, {}], avoided)
    task = ray.remote(num_cpus=0, max_retries=0, **options)(lambda: "done")
    assert ray.get(task.remote(), timeout=300) == "done"


@pytest.mark.parametrize(
    ("share", "gpus", "actors"), [(1.0, 2, 2), (0.5, 2, 4), (0.4, 2, 4), (0.1, 1, 10), (0.33, 1, 3), (0.3334, 1, 2)]
)
def test_an_actor_never_has_parts_of_two_gpus(share: float, gpus: int, actors: int) -> None:
    pool = PoolConfig(gpus_per_actor=share)
    on_gpu = Needs(share, 0, pool.actors_per_gpu, ())
    assert on_gpu.capacity({"GPU": gpus, "CPU": 0}, {}) == actors
    assert on_gpu.options() == {"num_gpus": share, "num_cpus": 0}


def test_there_is_room_on_selected_nodes_alone() -> None:
    on_cpus = Needs(0, 2, 1, (SPOT, ON_DEMAND))
    rooms = [on_cpus.capacity({"CPU": 5}, labels) for labels in (SPOT, ON_DEMAND, {"market": "block"}, {})]
    assert rooms == [2, 2, 0, 0]
    # A node that may come, of unknown labels, may be one of them.
    assert on_cpus.capacity({"CPU": 5}, None) == 2


def test_selectors_come_from_files_and_flags(tmp_path: Path) -> None:
    pool = {"label_selector": {"ray.io/accelerator-type": "in(L4, A10G)"}, "fallback": [{"market": "!spot"}, {}]}
    config = make_config(tmp_path, "out", pool=pool)
    assert from_dict(SynthesisConfig, to_dict(config)) == config
    (tmp_path / "c.yaml").write_text(json.dumps(to_dict(make_config(tmp_path, "out"))))
    flags = [f"--pool.{name}={json.dumps(value)}" for name, value in pool.items()]
    assert parse_config(SynthesisConfig, [f"--config={tmp_path / 'c.yaml'}", *flags]) == config


def test_actors_that_share_a_gpu_have_its_memory_without_their_contexts() -> None:
    gib = 2**30
    assert memory_share(24 * gib, 1) == 24 * gib
    assert memory_share(24 * gib, 4) == 5 * gib
    limit_memory(torch.device("cpu"), 4)


@requires_gpu
def test_an_actor_cannot_take_the_memory_of_another() -> None:
    gpu = torch.device("cuda")
    total = torch.cuda.get_device_properties(gpu).total_memory
    limit_memory(gpu, 2)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(total * 6 // 10, dtype=torch.uint8, device=gpu)
        with pytest.raises(ConfigError, match=r"pool\.gpus_per_actor puts 1000 actors on a GPU of "):
            limit_memory(gpu, 1000)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)


@pytest.mark.usefixtures("ray_session")
def test_a_pool_starts_with_as_many_as_there_is_work_and_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def sizes(num_shards: int, **pool: Any) -> tuple[int, int, int]:
        config = make_config(Path("t"), "out", pool=pool)
        compute = pool_options(config, num_shards)["compute"]
        return compute.min_size, compute.initial_size, compute.max_size

    # 2 logical GPUs; the cluster that the tests start has no autoscaler.
    assert node_types() == NodeTypes()
    assert sizes(6, max_size=5) == (1, 2, 5)
    assert sizes(1, max_size=5) == (1, 1, 1)
    assert sizes(6, max_size=5, initial_size=1) == (1, 1, 5)
    assert sizes(6, max_size=5, gpus_per_actor=0.5) == (1, 4, 5)
    assert sizes(6, max_size=5, device="cpu", min_size=2) == (2, 4, 5)
    with pytest.raises(ConfigError, match=r"min_size 5 with 0\.5 GPU per actor: the cluster has room for 4"):
        sizes(6, min_size=5, max_size=5, gpus_per_actor=0.5)
    with pytest.raises(ConfigError, match=r"min_size 1 with 1 GPU per actor: the cluster has room for 0$"):
        sizes(6, device="cuda", label_selector=SPOT)
    monkeypatch.setattr("pipeline.synthesis.capacity._nodes", lambda: [])
    monkeypatch.setattr("pipeline.synthesis.pool.ray.cluster_resources", lambda: {"CPU": 4.0})
    with pytest.raises(ConfigError, match=r"has room for 0; without GPUs, set pool\.device to cpu$"):
        sizes(6, device="cuda")


@pytest.mark.usefixtures("open_cluster")
def test_where_nodes_may_join_a_pool_waits_for_them_and_asks_for_no_more_than_can_come() -> None:
    pool = {"min_size": 5, "max_size": 9}
    assert node_types() == NodeTypes()
    # The autoscaler brings none, so the two GPUs that are there are all; a user may start machines by hand.
    assert pool_options(make_config(Path("t"), "out", pool=pool), 6)["compute"].initial_size == 5
    pool = {"min_size": 1, "max_size": 5}
    assert pool_options(make_config(Path("t"), "out", pool=pool), 6)["compute"].initial_size == 2


@pytest.mark.usefixtures("ray_session")
def test_it_says_on_what_it_computes_and_why() -> None:
    assert describe_choice(PoolConfig()) == "computing on GPUs: the cluster has 2"
    assert describe_choice(PoolConfig(device="cpu")) == "computing on CPUs: pool.device is cpu"
    assert describe_choice(PoolConfig(gpus_per_actor=0.5)) == "computing on GPUs, 2 actors on each: the cluster has 2"
    chosen = "computing on CPUs: the cluster has no GPU that pool.label_selector chooses"
    assert describe_choice(PoolConfig(label_selector=SPOT)) == chosen


@pytest.fixture
def retired_gpu(ray_session: None) -> Iterator[Device]:
    """GPU 0, which is held."""
    device = Device(ray.get_runtime_context().get_node_id(), "here", "0")
    (holder,) = hold_gpus([device]).values()
    yield device
    ray.kill(holder)


def test_a_retired_gpu_is_lost_for_all_who_could_share_it(retired_gpu: Device) -> None:
    assert seats(PoolConfig(gpus_per_actor=0.25), without=[retired_gpu]) == 4

    @ray.remote(num_gpus=0.5, num_cpus=0)
    def gpu() -> list[str]:
        return ray.get_runtime_context().get_accelerator_ids()["GPU"]

    assert ray.get([gpu.remote() for _ in range(4)]) == [["1"]] * 4


def test_work_begins_with_the_actors_that_there_are(retired_gpu: Device, tiny_folder: Path, tmp_path: Path) -> None:
    # Both GPUs are asked for, and one of them is never free.
    pool = {"min_size": 1, "max_size": 2, "start_timeout_s": 600}
    assert pool_options(make_config(tiny_folder, "x", pool=pool), 6)["compute"].initial_size == 2
    summary = synthesize(make_config(tiny_folder, tmp_path / "out", pool=pool))
    assert (summary["complete"], len(summary["workers"])) == (True, 1)
