"""Join a Ray cluster, or start one on this machine."""

import json
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc
import ray
import ray.data
import ray.exceptions
import ray.util.client
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
from ray._private import services
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
from ray._private.utils import check_version_info
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster.head import open_connection, watch_head
from pipeline.cluster.ray_messages import leave_out_pool_ends, quiet_core, without_token_advice
from pipeline.errors import ClusterError, one_line

# Seconds. A head that is alive accepts a connection in milliseconds, and answers within a second or two.
_CONNECT_TIMEOUT_S = 5.0
_ANSWER_TIMEOUT_S = 10.0
_NO_CLIENT = "jobs run on the cluster itself: submit them with `ray job submit`, or start them on one of its machines"
_LOCAL = "for a cluster of this machine alone set RAY_ADDRESS=local"


def connect() -> None:
    """Join the cluster this process belongs to (RAY_ADDRESS, or one started on this machine), else start a local one.

    A process that has joined already stays where it is. Standard output is left to the job: what workers print goes
    to Ray's log files, and Ray Data prints only warnings.

    Raises:
        ClusterError: see `check_cluster`; or Ray could not join or start the cluster.
    """
    check_cluster()
    if not ray.is_initialized():
        with own_signals(), without_token_advice():
            try:
                # The dashboard concerns a cluster that this call starts, and an existing one ignores it.
                ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
            except Exception as error:
                # Ray raises everything from ValueError to a bare Exception here.
                raise ClusterError(f"cannot {_joining()}: {one_line(error)}{_advice(error)}") from error
        quiet_core()
        watch_head(ray.get_runtime_context().gcs_address)
    leave_out_pool_ends()
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # This one warns that there are no progress bars, which were switched off.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    # These print the traceback of an error that is raised all the same.
    for name in ("ray.data.exceptions", "ray.data._internal.execution.streaming_executor_state"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Our own errors come back as what they are, and not as text in Ray's.
    context.raise_original_map_exception = True


def start_here(kind: type, *arguments: Any, **named: Any) -> ActorHandle:
    """Start a small actor on the machine of this process: if that machine is lost, the run is lost in any case."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor_class: Any = ray.remote(num_cpus=0)(kind)
    return actor_class.options(scheduling_strategy=here).remote(*arguments, **named)


def check_cluster() -> None:
    """Check within seconds that there is a cluster to join, without joining it; Ray itself would wait for minutes.

    A process that has joined one already, or that will start one of its own, passes.

    Raises:
        ClusterError: RAY_ADDRESS, or what Ray remembers of this machine, leads to a cluster that does not answer, runs
            another version of Ray or Python, refuses the token, or is reached through Ray Client.
    """
    if ray.util.client.ray.is_connected():
        raise ClusterError(f"this process is connected through Ray Client: {_NO_CLIENT}")
    if ray.is_initialized():
        return
    address = _address()
    if address is None:
        return
    where = f"the Ray cluster {address} ({_named_by()})"
    try:
        open_connection(address, timeout_s=_CONNECT_TIMEOUT_S)
    except ValueError as error:
        raise ClusterError(f"{_named_by()}, which is not of the form HOST:PORT") from error
    except OSError as error:
        raise ClusterError(f"nothing answers at {where}: {one_line(error)}; if it is gone, {_LOCAL}") from error
    check_answer(address, where)


def _address() -> str | None:
    """Return the address, as host:port, of the cluster that `ray.init()` would join; None if it would start one."""
    given = os.environ.get("RAY_ADDRESS", "")
    if given.startswith("ray://"):
        raise ClusterError(f"RAY_ADDRESS {given!r} is for Ray Client: {_NO_CLIENT}")
    if "://" in given:
        raise ClusterError(f"RAY_ADDRESS {given!r} is not a cluster's address: give HOST:PORT of its head, or 'local'")
    try:
        return services.canonicalize_bootstrap_address(None)  # pyright: ignore[reportArgumentType]
    except ConnectionError as error:
        raise ClusterError(f"{_named_by()}, and no Ray runs on this machine: {_LOCAL}") from error
    except (ValueError, OSError) as error:
        raise ClusterError(f"{_named_by()}, which is not of the form HOST:PORT: {one_line(error)}") from error


def _named_by() -> str:
    """Say where the address of a cluster comes from."""
    given = os.environ.get("RAY_ADDRESS")
    return f"RAY_ADDRESS is {given!r}" if given else "the address is in Ray's file ray_current_cluster on this machine"


def _joining() -> str:
    address = _address()
    return "start Ray on this machine" if address is None else f"join the Ray cluster {address} ({_named_by()})"


def _advice(error: Exception) -> str:
    return " Run it again when this machine has less to do." if "timed out during startup" in str(error) else ""


def check_answer(address: str, where: str) -> None:
    """Ask the head for its versions.

    Raises:
        ClusterError: the head gives none in time, or they differ from those of this process.
    """
    # A head that is stuck, and a server of another kind, accept connections and stay silent; Ray would wait a minute
    # and more. With TLS that is left to Ray.
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        with grpc.insecure_channel(address) as channel:
            try:
                grpc.channel_ready_future(channel).result(timeout=_ANSWER_TIMEOUT_S)
            except grpc.FutureTimeoutError as error:
                raise ClusterError(f"{where} does not answer, though something listens there") from error
    try:
        versions = GcsClient(address=address).internal_kv_get(CLUSTER_METADATA_KEY, namespace=KV_NAMESPACE_CLUSTER)
        # Without them Ray compares no versions, either.
        if versions is not None:
            check_version_info(json.loads(versions), "this machine")
    except (ray.exceptions.RayError, RuntimeError) as error:
        raise ClusterError(f"cannot join {where}: {one_line(error)}") from error


@contextmanager
def own_signals() -> Iterator[None]:
    """Let Ray set its handlers of SIGINT and SIGTERM inside the context, and restore the previous ones after it.

    Ray's handlers leave the process with exit code 15 or 0, and stay when Ray's work is over.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            # Ray's own is kept instead of the system's, which would end the process without cleaning up.
            if callable(handler):
                signal.signal(number, handler)


def kill_own_processes() -> None:
    """Kill at once what this process started of Ray; a cluster that it joined goes on."""
    import psutil  # type: ignore[reportMissingModuleSource]  # Ray brings it, and it is found once Ray is imported

    # Not by Ray's node, which would wait for a lock that the code being interrupted may hold. Agents, children of the
    # raylet, would outlive it for a minute.
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
