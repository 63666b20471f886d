"""Ray's worker processes as copies of one that has imported what they all import, which takes seconds each time.

The clusters of the tests run this file in place of Ray's `setup_worker.py`, see `tests.conftest.ray_session` and
`forking`: the first process that Ray starts leaves a server behind, which imports those packages, none of them this
project's; each process hands its arguments, environment and files to the server, and a copy of the server becomes the
worker. Ray asks for no particular process: it knows a worker by the id among the arguments. All clusters of a process
of tests share the server that `FORKS` names, which ends with that process; without `FORKS` it ends with its cluster.
"""

import fcntl
import gc
import importlib
import importlib.util
import json
import os
import runpy
import signal
import socket
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
LOOK_S = 0.5
# Environment variable: path of the socket, whose last suffix is the process with which the server ends.
FORKS = "FORKS"
# Ray's own: the process of the node that a worker belongs to.
RAYLET = "RAY_RAYLET_PID"


def main(arguments: list[str]) -> None:
    """Ask for a worker with these arguments; in the copy that becomes one, be it."""
    if not any(each.startswith(FOLDER) for each in arguments):
        # `ray start` starts the server of Ray's client in this way too, which is no worker.
        spec = importlib.util.find_spec("ray._private.workers")
        assert spec is not None
        assert spec.submodule_search_locations is not None
        os.execv(sys.executable, [sys.executable, f"{spec.submodule_search_locations[0]}/setup_worker.py", *arguments])
    rest = [each for each in arguments if not each.startswith((CONTEXT, LANGUAGE))]
    # None for workers that are started before there is a job.
    context = next((json.loads(each.removeprefix(CONTEXT)) for each in arguments if each.startswith(CONTEXT)), {})
    # As Ray's `update_envs` has it.
    os.environ |= {name: os.path.expandvars(value) for name, value in (context.get("env_vars") or {}).items()}
    path = _socket_of(arguments)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        connection = _connect(path)
        if connection is None:
            # That of a server which died does not answer.
            path.unlink(missing_ok=True)
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(str(path))
            listening.listen(100)
            if os.fork() == 0:
                lock.close()
                sys.path[0] = folder = _folder_of(rest)
                return _become_worker(_serve(listening, int(path.suffix[1:])), folder)
            connection = _connect(path)
    assert connection is not None
    request = {"arguments": rest, "environment": dict(os.environ), "folder": os.getcwd()}
    socket.send_fds(connection, [b" "], [0, 1, 2])
    connection.sendall(json.dumps(request).encode())
    return None


def _socket_of(arguments: list[str]) -> Path:
    """Return the path of the server's socket."""
    own = Path(_value(arguments, FOLDER), _value(arguments, "--session-name="), "sockets")
    return Path(os.environ.get(FORKS) or own / f"forks.{os.environ[RAYLET]}")


def _folder_of(arguments: list[str]) -> str:
    """Return what Python puts first into `sys.path`."""
    return str(Path(arguments[0]).parent)


def _value(arguments: list[str], flag: str) -> str:
    (value,) = (each.removeprefix(flag) for each in arguments if each.startswith(flag))
    return value


def _connect(path: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    return connection


def _serve(listening: socket.socket, owner: int) -> socket.socket:
    """Make copies of this process as long as its owner lives; in each copy, return its connection."""
    # A signal for the group of the process that started this one is not for this one.
    os.setsid()
    # Ray remembers it when it is imported, and has each worker end with it; copies are of any cluster.
    os.environ[RAYLET] = str(os.getpid())
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


def _become_worker(connection: socket.socket, folder: str) -> None:
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
    # By another name of the same folder, where one cluster was started through a link.
    sys.path[sys.path.index(folder)] = _folder_of(sys.argv)
    _use_python_path(os.environ.get("PYTHONPATH", ""))
    # Python draws its own seed anew in a copy.
    importlib.import_module("numpy.random").seed()
    runpy.run_path(sys.argv[0], run_name="__main__")


def _use_python_path(paths: str) -> None:
    """Do what Python does with `PYTHONPATH` when a process starts, which was too early for this one."""
    own = [path for path in paths.split(os.pathsep) if path and path not in sys.path]
    place = sys.path.index(_folder_of(sys.argv)) + 1
    sys.path[place:place] = own
    for customized in (Path(path, "sitecustomize.py") for path in own):
        if customized.exists():
            runpy.run_path(str(customized))


if __name__ == "__main__":
    main(sys.argv[1:])
