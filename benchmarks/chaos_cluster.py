"""A Ray cluster of several nodes on this machine, and jobs on it, for `benchmarks.chaos`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ray.cluster_utils import Cluster

ROOT = Path(__file__).parents[1]
# What each worker of a job calls first.
_HOOK = "benchmarks.chaos_worker.set_up"
_POLL_S = 0.05
# Nodes with a GPU; one can break and one can be lost without replacement, and a run goes on.
NUM_NODES = 3
_STORE_BYTES = 100 * 2**20
# Read by the cluster's processes. A lost node is noticed within a second, not in 15; workers are as nice as others.
_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "2",
}


class Nodes:
    """A head without GPUs, where the jobs' own processes run, and nodes with one logical GPU each.

    Args:
        cpus: of each node, beside its GPU.
        num_nodes: beside the head; they can be added to.
        env: additions to the environment of the cluster's processes, and so of this one.
    """

    def __init__(self, cpus: int = 0, num_nodes: int = NUM_NODES, env: Mapping[str, str] | None = None) -> None:
        self._cpus, self._num_nodes = cpus, num_nodes
        # A folder of its own, so that no other cluster of this machine is found; Ray's sockets need short paths.
        self._folder = tempfile.mkdtemp(prefix="ray-")
        os.environ.update({**_ENVIRONMENT, **(env or {}), "RAY_TMPDIR": self._folder})
        os.mkdir(f"{self._folder}/ray")
        head = {"num_cpus": 1, "object_store_memory": _STORE_BYTES, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address: str = self._cluster.address  # type: ignore[assignment]
        self.fill()

    def fill(self) -> None:
        """Add the nodes that are missing."""
        while len(self._cluster.worker_nodes) < self._num_nodes:
            self._cluster.add_node(num_cpus=self._cpus, num_gpus=1, object_store_memory=_STORE_BYTES)

    def grow(self) -> None:
        """Add a node for good."""
        self._num_nodes += 1
        self.fill()

    def drain(self, node_id: str, notice_s: int) -> bool:
        """Tell Ray that a node will be taken, as a spot machine's notice does; return whether Ray took note of it."""
        flags = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot machine"]
        flags += ["--node-id", node_id, "--deadline-remaining-seconds", str(notice_s), "--address", self.address]
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", *flags]
        return not subprocess.run(command, stdout=sys.stderr, check=False).returncode

    def lose(self, node_id: str, *, replace: bool) -> None:
        """Kill all processes of a node, and start another one in its place if that is wanted.

        If it is lost already, another one is.
        """
        nodes = sorted(self._cluster.worker_nodes, key=lambda node: node.node_id != node_id)
        self._cluster.remove_node(nodes[0], allow_graceful=False)
        if replace:
            self.fill()

    def kill_gcs(self) -> None:
        """Kill the head's own process with SIGKILL; the other processes of the head and of all nodes go on."""
        assert self._cluster.head_node is not None
        self._cluster.head_node.kill_gcs_server()

    def start_gcs(self) -> None:
        """Start the head's own process again, at the address that it had."""
        assert self._cluster.head_node is not None
        self._cluster.head_node.start_gcs_server()

    def close(self) -> None:
        for node in [*self._cluster.worker_nodes, self._cluster.head_node]:
            self._cluster.remove_node(node, allow_graceful=False)  # type: ignore[arg-type]
        shutil.rmtree(self._folder, ignore_errors=True)


class JobProcess:
    """A job of this project as a process on the cluster.

    Args:
        arguments: of `python -m`.
        address: of the cluster.
        env: additions to the environment of the process and of its workers.
        log: prefix of the files that get its standard output and its standard error.
    """

    def __init__(self, arguments: list[str], address: str, env: Mapping[str, str], log: Path) -> None:
        self._made_of = (arguments, address, env)
        self.log = log
        workers = {"env_vars": {**env, "PYTHONPATH": str(ROOT)}, "worker_process_setup_hook": _HOOK}
        own = {"RAY_ADDRESS": address, "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": workers})}
        with self._file("out").open("w") as out, self._file("err").open("w") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments], env={**os.environ, **env, **own}, cwd=ROOT, stdout=out, stderr=err
            )

    def _file(self, kind: str) -> Path:
        return self.log.with_suffix(f".{kind}")

    def again(self, log: Path, address: str | None = None) -> "JobProcess":
        """Start the same job once more, beside this one or on another cluster."""
        arguments, here, env = self._made_of
        return JobProcess(arguments, address or here, env, log)

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    @property
    def reported(self) -> str:
        """Text that it has printed on standard error."""
        return self._file("err").read_text()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait_for(self, come: Callable[[], bool], timeout_s: float) -> None:
        """Wait until something has come about, while the job runs.

        Raises:
            SystemExit: the job ended first, or it took too long; the message has what the job reported.
        """
        deadline = time.monotonic() + timeout_s
        while not come():
            if self.code is not None or time.monotonic() > deadline:
                raise SystemExit(f"{self.log} stands still, or ended with {self.code}: {self.reported}")
            time.sleep(_POLL_S)

    def wait(self, timeout_s: float) -> None:
        """Wait for its end, and kill it if it does not end in time."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
