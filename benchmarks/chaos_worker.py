"""Carry out faults of `benchmarks.chaos` in workers: they find orders in a folder, each for a shard.

An order is a file in `orders/`. The worker that begins its shard moves it to `claimed/`, so that it strikes once, and
leaves a record of it in `struck/`. For faults from outside it then waits until the process beside the cluster has
written the same name to `acted/`. `broken/` holds the ids of nodes whose GPU fails with every shard.

The folder is in the environment variable `CHAOS`. Without it nothing happens.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.chaos_faults import FROM_OUTSIDE

FOLDERS = ("orders", "claimed", "struck", "acted", "broken")
# A shard takes longer, so that its worker dies in the middle.
_INTO_THE_BATCH_S = 0.1
_WAIT_S = 60.0
_ASK_EVERY_S = 0.05
_LOADING = "loading-"


def loading_order(pid: int) -> str:
    """Return the name of the order that makes a constructor fail, after the process `pid` was killed for it."""
    return f"{_LOADING}{pid}"


def set_up() -> None:
    """Arm what this worker will import: importing it here would take seconds, and few workers need it."""
    if "CHAOS" in os.environ:
        sys.meta_path.insert(0, _Armed())


class _Armed:
    """Finds modules where Python does, and changes a class of those that are armed once they are loaded."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in _ARM else None
        if spec is None or spec.loader is None:
            return None
        load: Callable[[ModuleType], None] = spec.loader.exec_module

        def load_armed(module: ModuleType) -> None:
            load(module)
            _ARM[name](module, Path(os.environ["CHAOS"]))

        spec.loader.exec_module = load_armed
        return spec


def _arm_synthesis(module: Any, folder: Path) -> None:
    """Strike at the beginning of a shard, and while a teacher is loaded."""
    make, load = module.Inverter.invert_shard, module.Inverter.__init__

    def invert_shard(self: Any, shard_id: int, *arguments: Any, **named: Any) -> Any:
        _strike(folder, shard_id)
        return make(self, shard_id, *arguments, **named)

    def __init__(self: Any, config: Any) -> None:
        if _claim(folder, _LOADING) is not None:
            raise OSError("the disk with the teacher did not answer")
        load(self, config)

    module.Inverter.invert_shard, module.Inverter.__init__ = invert_shard, __init__


def _arm_training(module: Any, folder: Path) -> None:
    """Strike at the beginning of an epoch, which counts from 0."""
    train = module.StudentTrainer._train_epoch

    def _train_epoch(self: Any, state: Any) -> Any:
        _strike(folder, state.epoch)
        return train(self, state)

    module.StudentTrainer._train_epoch = _train_epoch


def _arm_calibration(module: Any, folder: Path) -> None:
    """Strike before a worker's batch, which counts from 0."""
    read = module.GraphReader._arguments

    def _arguments(self: Any, batch: Any) -> Any:
        _strike(folder, self.num_images // len(batch.images))
        return read(self, batch)

    module.GraphReader._arguments = _arguments


def _arm_checkpoints(module: Any, folder: Path) -> None:
    """Ask for the notice of a drained node often enough for these shards."""
    module._ASK_EVERY_S = _ASK_EVERY_S


_ARM: dict[str, Callable[[Any, Path], None]] = {
    "pipeline.workers.checkpoint_timer": _arm_checkpoints,
    "pipeline.synthesis.actor": _arm_synthesis,
    "pipeline.distillation.loop": _arm_training,
    "pipeline.quantization.observe": _arm_calibration,
}


def _strike(folder: Path, number: int) -> None:
    node_id = _node_id()
    if (folder / "broken" / node_id).exists():
        _fail_as_gpu()
    name = _claim(folder, f"{number:05d}-")
    if name is None:
        return
    record = {"node_id": node_id, "pid": os.getpid(), "time": time.time()}
    # Moved into place: nobody reads half a record.
    (folder / "claimed" / name).write_text(json.dumps(record))
    (folder / "claimed" / name).rename(folder / "struck" / name)
    kind = name.split("-")[1]
    if kind in FROM_OUTSIDE:
        _wait_for(folder / "acted" / name)
    elif kind == "actor_killed":
        threading.Timer(_INTO_THE_BATCH_S, _die).start()
    else:
        _fail(folder, kind, node_id)


def _fail(folder: Path, kind: str, node_id: str) -> None:
    if kind == "gpu_broken":
        (folder / "broken" / node_id).touch()
    if kind in ("gpu_broken", "gpu_error"):
        _fail_as_gpu()
    if kind == "out_of_memory":
        _run_out_of_memory()
    if kind == "constructor_fails":
        # The next worker that loads a teacher, most likely in place of this one, cannot.
        (folder / "orders" / loading_order(os.getpid())).touch()
    _die()


def _claim(folder: Path, prefix: str) -> str | None:
    """Take an order; of several workers that try at once one gets it."""
    for order in sorted((folder / "orders").glob(f"{prefix}*")):
        try:
            order.rename(folder / "claimed" / order.name)
        except FileNotFoundError:
            continue
        return order.name
    return None


def _wait_for(file: Path) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def _fail_as_gpu() -> None:
    import torch

    raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")


def _run_out_of_memory() -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory: not even one image fits")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _node_id() -> str:
    import ray

    return ray.get_runtime_context().get_node_id()
