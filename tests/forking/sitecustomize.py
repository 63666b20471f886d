"""Clusters that processes with this folder on `PYTHONPATH` start get their workers from `tests/fork_server.py`.

Python runs this file when it starts. Importing Ray here would take a second of each process: its constant is changed
once something else imports it.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

CONSTANTS = "ray._private.ray_constants"


class _Changed:
    """Finds Ray's constants where Python does, and changes one of them."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == CONSTANTS else None
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_changed(module: ModuleType) -> None:
            load(module)
            module.SETUP_WORKER_FILENAME = str(Path(__file__).parents[1] / "fork_server.py")  # type: ignore[attr-defined]

        spec.loader.exec_module = load_changed
        return spec


sys.meta_path.insert(0, _Changed())  # type: ignore[arg-type]
