"""A tiny teacher that takes milliseconds, as a module, as a folder, and one Ray session for each process of tests."""

import fcntl
import gc
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

# Before Ray is imported: no token file in the user's home directory, and no usage pings or color codes.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Ray's workers are as nice as 15 by default: beside another process of pytest-xdist they would hardly run at all.
os.environ.setdefault("RAY_worker_niceness", "0")
# A worker that is idle for a second would end, and the next test would start another, which imports Ray Data again.
os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
# Ray Train looks every two seconds whether its workers have ended, and starts a process that looks for preemptions of
# nodes, of which there are none. Jobs of test_submit.py run with Ray's own settings.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
# Its agent asks each process of the node what it uses; nobody looks at that here.
os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "60000")
# Jobs in processes of their own share the cores with Ray's workers, as this process does, see below.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# For the clusters of this process alone: in a shared folder Ray would join, or wait for, the last one it finds there.
os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray-")
# See `tests/fork_server.py`.
os.environ["FORKS"] = f"{os.environ['RAY_TMPDIR']}/forks"

import pytest
import timm
import torch
from torch import nn

from pipeline.inversion import Teacher
from pipeline.models import save_model
from tests.fork_server import start_server

# OpenVINO tells Google Analytics when it is imported, and keeps an identity in the home directory; NNCF imports it.
# Without this package both do neither.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
# Machines with a GPU that only test the engine may lack torchao.
pytest_plugins = ["tests.quantized"] if find_spec("torchao") else []

# Of `tests.quantized`: each takes seconds.
ARTIFACTS = frozenset(("files", "packed", "programs", "quantized"))
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}
HALF = (0.5, 0.5, 0.5)


# Families that cannot be run on a token subset, and what makes them small: 64 × 64 pixels, 16 or 64 patches.
WHOLE_IMAGES: dict[str, dict[str, Any]] = {
    "swin_tiny_patch4_window7_224": {"window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)},
    "swinv2_tiny_window8_256": {"window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)},
    "beit_base_patch16_224": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "hiera_tiny_224": {"embed_dim": 16, "num_heads": 1, "stages": (1, 1, 1), "q_pool": 2, "mask_unit_size": (4, 4)},
    "vit_relpos_small_patch16_224": {"embed_dim": 32, "depth": 2, "num_heads": 2},
}

requires_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# Tiny models are faster on one thread, and Ray's actors want the other core.
torch.set_num_threads(1)


def make_tiny_model(seed: int = 0, **changes: object) -> nn.Module:
    """A ViT of 10 classes that reads 32 × 32 pixels in 16 patches."""
    torch.manual_seed(seed)
    model = timm.create_model("vit_tiny_patch16_224", **{**TINY, **changes})  # type: ignore[arg-type]
    return enlarge_weights(model).eval()


def make_whole(name: str) -> nn.Module:
    """A classifier of 10 classes that reads whole images of 64 × 64 pixels."""
    torch.manual_seed(0)
    sizes = WHOLE_IMAGES.get(name, {"embed_dim": 32, "depth": 2, "num_heads": 2})
    return enlarge_weights(timm.create_model(name, img_size=64, num_classes=10, **sizes)).eval()


def enlarge_weights(model: nn.Module) -> nn.Module:
    """Random weights that pass signals on as trained ones do; timm's small initial ones leave every class alike."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            elif ".gamma" in name:
                parameter.fill_(1)
    return model


def make_manifest(digest: str, **changes: object) -> dict[str, object]:
    """A synthetic dataset's, as far as it is read."""
    whole: dict[str, object] = {
        "schema_version": 1,
        "digest": digest,
        "num_shards": 3,
        "num_images": 15,
        "class_names": [f"class {letter}" for letter in "abcdefghij"],
        "image_size": [3, 32, 32],
        "teacher": {"name": "tiny", "weights_sha256": "0" * 64},
    }
    return {**whole, **changes}


def pytest_configure(config: pytest.Config) -> None:
    """Put files of a folder side by side: pytest does not find a folder's fixtures when it comes back to it."""
    config.args.sort(key=os.path.dirname)


def pytest_collection_finish() -> None:
    """Leave what the modules of all tests are made of out of garbage collections, each of which would take a second."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()
    shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)


# Before pytest-xdist's own, which reads the groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that share a cluster, artifacts, or what their module makes once, in one process of pytest-xdist.

    Those of the two clusters take longest, and go first, for they are the largest groups but for the artifacts'; the
    processes share out what is left. Tests on a cluster have more time than others: each starts processes that import
    torch, on cores that others use too.
    """
    for item in items:
        cluster = cluster_of(item)
        if (group := cluster or shared_by(item)) is not None:
            item.add_marker(pytest.mark.xdist_group(group))
        if cluster is not None and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(600))


def shared_by(item: pytest.Item) -> str | None:
    """Return the name of the group of tests that share what takes seconds to make; None if there is no such group."""
    if not ARTIFACTS.isdisjoint(getattr(item, "fixturenames", ())):
        return "artifacts"
    definitions: Any = getattr(item, "_fixtureinfo", None)
    made = [] if definitions is None else [each[-1] for each in definitions.name2fixturedefs.values()]
    return item.nodeid.partition("::")[0] if any(fixture.scope == "module" for fixture in made) else None


def cluster_of(item: pytest.Item) -> str | None:
    """Return the name of the group of tests that a test shares its cluster with; None if it needs no cluster."""
    fixtures = getattr(item, "fixturenames", ())
    if item.path.parent.name == "synthesis" and "ray_session" in fixtures:
        return "synthesis"
    # Those clusters are of one module alone; here, for the other group is the larger one.
    if item.path.name in ("test_submit.py", "test_autoscaling.py"):
        return "synthesis"
    return "others" if "ray_session" in fixtures else None


def forking(env: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that starts a cluster of its own, whose workers are copies as well."""
    start_server()
    paths = [str(Path(__file__).with_name("forking")), *filter(None, [env.get("PYTHONPATH")])]
    return {**env, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture
def tiny_model() -> nn.Module:
    return make_tiny_model()


@pytest.fixture
def tiny_teacher(tiny_model: nn.Module) -> Teacher:
    return Teacher(tiny_model, mean=HALF, std=HALF)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as `timm.create_model("local-dir:...")` loads it."""
    folder = tmp_path_factory.mktemp("tiny-teacher")
    names = [f"class {letter}" for letter in "abcdefghij"]
    save_model(make_tiny_model(), folder, class_names=names, mean=HALF, std=HALF)
    return folder


@pytest.fixture(scope="session")
def whole_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Swin, which reads whole images only, of 64 × 64 pixels in 8 × 8 patches, as a folder."""
    folder = tmp_path_factory.mktemp("whole-teacher")
    names = [f"class {letter}" for letter in "abcdefghij"]
    save_model(make_whole("swin_tiny_patch4_window7_224"), folder, class_names=names, mean=HALF, std=HALF)
    return folder


@contextmanager
def starting_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start one cluster at a time: Ray waits for half a minute, and two at once may take longer."""
    with (tmp_path_factory.getbasetemp().parent / "cluster.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A local cluster with 4 logical CPUs and 2 logical GPUs: each CPU is a process, which may import torch."""
    import ray
    from ray._private import ray_constants, worker

    # A job that ran in this process before may have left a cluster of its own, without GPUs.
    ray.shutdown()
    start_server()
    with pytest.MonkeyPatch.context() as patch, starting_cluster(tmp_path_factory):
        # Of this cluster alone; Ray looks for the name beside its own files.
        patch.setattr(ray_constants, "SETUP_WORKER_FILENAME", str(Path(__file__).with_name("fork_server.py")))
        ray.init(
            address="local",
            num_cpus=4,
            num_gpus=2,
            include_dashboard=False,
            object_store_memory=150 * 2**20,
            # As `pipeline.cluster.connect` has it: Ray prints what workers and its autoscaler say on standard
            # output, in the middle of whatever another test reads from there.
            log_to_driver=False,
            logging_level=logging.WARNING,
            # Of ten seconds otherwise, which tests of metrics would wait for.
            _system_config={"metrics_report_interval_ms": 2000},
        )
    node: Any = worker._global_node
    # Ten times a second it looks for new lines in the logs of all workers, which are shown to nobody.
    node.kill_log_monitor()
    yield
    ray.shutdown()


@pytest.fixture
def open_cluster(ray_session: None) -> Iterator[None]:
    """The cluster of the tests, as nodes may join it: its head records that `ray start` started it."""
    import ray
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

    assert ray.is_initialized()
    recorded: Any = _internal_kv_get(CLUSTER_METADATA_KEY, namespace=KV_NAMESPACE_CLUSTER)
    changed = json.dumps({**json.loads(recorded), "ray_init_cluster": False})
    _internal_kv_put(CLUSTER_METADATA_KEY, changed, overwrite=True, namespace=KV_NAMESPACE_CLUSTER)
    yield
    _internal_kv_put(CLUSTER_METADATA_KEY, recorded, overwrite=True, namespace=KV_NAMESPACE_CLUSTER)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The environment that leads to an object store with a bucket `made`: a server that speaks S3, in this process."""
    # Here, for most tests need neither and both take a second.
    import boto3
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    env = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    # Servers of one process share what they hold.
    with urlopen(Request(f"{env['AWS_ENDPOINT_URL']}/moto-api/reset", method="POST")):
        pass
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="made")
    S3FileSystem.clear_instance_cache()
    yield env
    S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def s3_bucket(s3: dict[str, str]) -> Any:
    """The bucket `made`, as boto3 shows it."""
    import boto3

    resource: Any = boto3.resource("s3")
    return resource.Bucket("made")
