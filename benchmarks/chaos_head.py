"""Kill the head's own process (GCS) during a synthesis, and compare the dataset with an undisturbed one, byte for byte.

    python -m benchmarks.chaos_head --storage memory

With `memory`, Ray's default, nobody starts it again: the job has to end by itself, and the same command on a new
cluster makes the rest. With `rocksdb` and `redis`, GCS keeps its state there and comes back after some seconds, and the
job goes on. The Redis server is one of its own; the program `redis-server` has to be on the PATH.

Prints one JSON line: whether the dataset is identical, seconds from the kill to the job's end, and what the job said
after the kill. Exits with 1 if the dataset differs, a job hung, ended with another code than it should, did not say
that the head is gone and is back, or said anything but our lines. Needs the extra `test`.
"""

import argparse
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
import yaml

from benchmarks.chaos_cluster import JobProcess, Nodes
from benchmarks.chaos_dataset import compare, make_undisturbed, settings, write_teacher
from benchmarks.circumstances import circumstances
from benchmarks.drill import Result, drill, parser_of

STORAGES = ("memory", "rocksdb", "redis")
_SHARDS = 20
# Shards are written when it is killed.
_KILLED_AFTER = 3
# Long enough for the job to say so.
_DOWN_S = 12.0
# Of what the job itself says after a kill; progress among it.
_ALARMS = ("error: ", "warning: ")
# What alarms are about: the head is gone, which is an error, and is back, a warning.
_HEAD = "the head of the Ray cluster, "
_OURS = (*_ALARMS, "synthesis: ", "report: ", "quantize the teacher on it: ")
_STARTS_S = 120.0
# Beyond the time that Ray itself waits for GCS; a run that takes longer hangs.
_SPARE_S = 120.0
_POLL_S = 0.05


def measure(options: argparse.Namespace, folder: Path) -> Result:
    """The JSON line, as plain data."""
    torch.set_num_threads(1)
    write_teacher(folder / "teacher")
    undisturbed = settings(folder / "teacher", str(folder / "undisturbed"), _SHARDS)
    make_undisturbed(undisturbed)
    output = str(folder / "output")
    (folder / "config.yaml").write_text(yaml.safe_dump({**undisturbed, "output": output}))
    with _kept_in(options.storage, folder) as env:
        env["RAY_gcs_rpc_server_reconnect_timeout_s"] = str(options.give_up_s)
        runs = _runs(options, folder, output, env)
    difference = compare(output, undisturbed["output"])
    result = {
        "storage": options.storage,
        "identical": not difference.lost and not difference.doubled,
        "lost": len(difference.lost),
        "doubled": len(difference.doubled),
        **runs,
    }
    more = {"give_up_s": options.give_up_s, "shards": _SHARDS, "ray": ray.__version__}
    return {**result, **more, **circumstances("benchmarks.chaos_head", torch.device("cpu"))}


def is_right(result: Result) -> bool:
    """Return whether the job said what happened and ended as it should, and left no trace of the kill."""
    codes, alarms = ([1, 0], _ALARMS[:1]) if result["storage"] == "memory" else ([0], _ALARMS)
    said = tuple(line.partition(_HEAD)[0] for line in result["said"])
    ended = result["exit_codes"] == codes and said == alarms and not result["unexpected"]
    return bool(result["identical"] and ended)


def _runs(options: argparse.Namespace, folder: Path, output: str, env: dict[str, str]) -> dict[str, Any]:
    """Run the job until its output is whole, with GCS killed once."""
    job = ["jobs.synthesize", "--config", str(folder / "config.yaml")]
    nodes = Nodes(num_nodes=1, env=env)
    try:
        first = JobProcess(job, nodes.address, {}, folder / "run-0")
        first.wait_for(lambda: len(_parts(Path(output, "data"))) >= _KILLED_AFTER, _STARTS_S)
        before = len(first.reported)
        nodes.kill_gcs()
        killed = time.monotonic()
        if options.storage != "memory":
            time.sleep(_DOWN_S)
            nodes.start_gcs()
        hung = _wait(first, options.give_up_s + _SPARE_S)
        ended_s = time.monotonic() - killed
    finally:
        nodes.close()
    said, codes, made = first.reported[before:].splitlines(), [first.code], len(_parts(Path(output, "data")))
    if options.storage == "memory":
        codes.append(_again(first, env, folder / "run-1"))
    return {
        "exit_codes": codes,
        "ended_s": round(ended_s, 1),
        "parts_then": made,
        "said": [line for line in said if line.startswith(_ALARMS)],
        "unexpected": [line for line in said if not line.startswith(_OURS)] + ["the job hung"] * hung,
    }


def _again(job: JobProcess, env: dict[str, str], log: Path) -> int | None:
    """Run the job again on a new cluster, and return its exit code."""
    nodes = Nodes(num_nodes=1, env=env)
    try:
        second = job.again(log, address=nodes.address)
        _wait(second, _SPARE_S)
        return second.code
    finally:
        nodes.close()


def _parts(data: Path) -> list[Path]:
    return list(data.glob("part-*.parquet"))


def _wait(job: JobProcess, timeout_s: float) -> bool:
    """Wait for a job's end, and return whether it had to be killed."""
    job.wait(timeout_s)
    return job.code == -9


@contextmanager
def _kept_in(storage: str, folder: Path) -> Iterator[dict[str, str]]:
    """Yield the environment of a cluster whose GCS keeps its state in a storage."""
    if storage == "rocksdb":
        (folder / "gcs").mkdir()
        yield {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(folder / "gcs")}
    elif storage == "redis":
        with _redis(folder / "redis") as address:
            yield {"RAY_REDIS_ADDRESS": address}
    else:
        yield {}


@contextmanager
def _redis(folder: Path) -> Iterator[str]:
    """Run a Redis server of our own, and yield its address."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(folder)]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_for_server(server, port)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def _wait_for_server(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _STARTS_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            time.sleep(_POLL_S)
        else:
            return
    raise SystemExit(f"redis-server did not start: {server.poll()}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--storage", choices=STORAGES, default="memory", help="where GCS keeps its state")
    parser.add_argument("--give-up-s", type=int, default=60, help="seconds that Ray waits for GCS; 60 is its default")
    return drill(parser, measure, is_right, argv)


if __name__ == "__main__":
    sys.exit(main())
