"""Ray's worker processes as copies of one that has imported what they all import, which takes seconds each time.

The clusters of the tests run this file in place of Ray's `setup_worker.py`, see `tests.conftest.ray_session` and
`forking`. Each process of tests has a server, which imports those packages, none of them this project's; each process
that Ray starts hands its arguments, environment and files to the server, and a copy of the server becomes the worker.
Ray asks for no particular process: it knows a worker by the id among the arguments. Without a server that answers, the
process becomes the worker itself.

The server has the environment of the tests, not that of the first worker: Ray keeps variables that it finds when it is
imported. With the job of one worker kept in this way, workers for another job start, and never get a task.
"""

import gc
import importlib
import importlib.util
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PRELOADED = (
    "ray.data",
    "ray.train.torch",
    "ray.train.v2.api.data_parallel_trainer",
    "pandas",
    "pyarrow.parquet",
    "timm",
    "torchvision",
)
CONTEXT = "--serialized-runtime-env-context="
LANGUAGE = "--language="
FOLDER = "--temp-dir="
SERVE = "--serve"
LOOK_S = 0.5
# Environment variable: path of the server's socket.
FORKS = "FORKS"
# Ray's own: the process of the node that a worker belongs to, and the number of its job; a worker for any job has this.
RAYLET = "RAY_RAYLET_PID"
JOB = "RAY_JOB_ID"
ANY_JOB = "ffffffff"


def main(arguments: list[str]) -> None:
    """Ask for a worker with these arguments; in the copy that becomes one, be it."""
    # `ray start` starts the server of Ray's client in this way too, which is no worker.
    is_worker = any(each.startswith(FOLDER) for each in arguments)
    path = os.environ.get(FORKS)
    connection = _connect(path) if is_worker and path else None
    if connection is None:
        spec = importlib.util.find_spec("ray._private.workers")
        assert spec is not None
        assert spec.submodule_search_locations is not None
        os.execv(sys.executable, [sys.executable, f"{spec.submodule_search_locations[0]}/setup_worker.py", *arguments])
    rest = [each for each in arguments if not each.startswith((CONTEXT, LANGUAGE))]
    # None for workers that are started before there is a job.
    context = next((json.loads(each.removeprefix(CONTEXT)) for each in arguments if each.startswith(CONTEXT)), {})
    # As Ray's `update_envs` has it.
    os.environ |= {name: os.path.expandvars(value) for name, value in (context.get("env_vars") or {}).items()}
    request = {"arguments": rest, "environment": dict(os.environ), "folder": os.getcwd()}
    socket.send_fds(connection, [b" "], [0, 1, 2])
    connection.sendall(json.dumps(request).encode())


def start_server() -> None:
    """Start the server of this process's clusters, unless it runs already; it ends with this process."""
    path = os.environ[FORKS]
    if not os.path.exists(path):
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(path)
        listening.listen(100)
        command = [sys.executable, __file__, SERVE, str(listening.fileno()), str(os.getpid())]
        with open(f"{path}.log", "wb") as log:
            own = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "pass_fds": [listening.fileno()]}
            # A signal for this process's group is not for the server.
            subprocess.Popen(command, start_new_session=True, **own)
        listening.close()


def serve(listening: socket.socket, owner: int) -> None:
    """Be the server of that process; in a copy, be a worker."""
    # The folder of this file, whose modules are none of a worker's.
    del sys.path[0]
    _become_worker(_next_connection(listening, owner))


def _folder_of(arguments: list[str]) -> str:
    """Return what Python puts first into `sys.path`."""
    return str(Path(arguments[0]).parent)


def _connect(path: str) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    return connection


def _next_connection(listening: socket.socket, owner: int) -> socket.socket:
    """Make copies of this process as long as its owner lives; in each copy, return its connection."""
    # Ray remembers it when it is imported, and has each worker end with it; copies are of any cluster.
    os.environ[RAYLET] = str(os.getpid())
    os.environ[JOB] = ANY_JOB
    _preload()
    gc.collect()
    gc.freeze()
    # Nobody waits for the copies.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listening.settimeout(LOOK_S)
    while _is_alive(owner):
        try:
            connection, _ = listening.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            # As Ray does, which kills all of a worker's group when it ends.
            os.setpgid(0, 0)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listening.close()
            return connection
        connection.close()
    os._exit(0)


def _preload() -> None:
    """Import the packages, and draw none of Ray's random ids meanwhile: all copies would go on with the same ones."""
    import ray.actor

    original: Any = ray.actor.ActorClassID
    drawn = SimpleNamespace(from_random=lambda: original(os.urandom(original.size())))
    ray.actor.ActorClassID = drawn  # type: ignore[assignment]
    for name in PRELOADED:
        importlib.import_module(name)
    ray.actor.ActorClassID = original


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _end_with(raylet: int) -> None:
    """End this worker when its node's raylet has ended, as Ray's own watch does in a process of its own."""
    while _is_alive(raylet):
        time.sleep(LOOK_S)
    os._exit(1)


def _become_worker(connection: socket.socket) -> None:
    connection.setblocking(True)
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    request: dict[str, Any] = json.loads(connection.makefile("rb").read())
    connection.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    threading.Thread(target=_end_with, args=(int(os.environ[RAYLET]),), daemon=True).start()
    sys.argv[:] = request["arguments"]
    sys.path.insert(0, _folder_of(sys.argv))
    _use_python_path(os.environ.get("PYTHONPATH", ""))
    # Python draws its own seed anew in a copy.
    importlib.import_module("numpy.random").seed()
    runpy.run_path(sys.argv[0], run_name="__main__")


def _use_python_path(paths: str) -> None:
    """Do what Python does with `PYTHONPATH` when a process starts, which was too early for this one."""
    own = [path for path in paths.split(os.pathsep) if path and path not in sys.path]
    sys.path[1:1] = own
    for customized in (Path(path, "sitecustomize.py") for path in own):
        if customized.exists():
            runpy.run_path(str(customized))


if __name__ == "__main__":
    if sys.argv[1] == SERVE:
        serve(socket.socket(fileno=int(sys.argv[2])), owner=int(sys.argv[3]))
    else:
        main(sys.argv[1:])
