"""Look in the output for the first part of each worker, because a worker may write to another machine's folder."""

from collections.abc import Callable
from typing import cast

from pipeline import storage
from pipeline.dataset import store
from pipeline.errors import DatasetError
from pipeline.outputs.owners import NOT_SHARED
from pipeline.synthesis.outcome import Outcome

# Delays before each look at a new file, for stores that show it only after a moment.
_LOOK_AGAIN_S = (0.0, 0.5, 2.0)


class FirstParts:
    """The workers of a run, as far as this process has found a part of theirs.

    Args:
        output: folder of the dataset.
        digest: digest of the dataset.
        note: function that prints a line.
    """

    def __init__(self, output: str, digest: str, note: Callable[[str], None]) -> None:
        self._output, self._digest, self._note = output, digest, note
        self._found: set[str] = set()
        # Node, or worker whose node is unknown → why its parts are lost.
        self._rejected: dict[str, str] = {}
        self._told = False

    def why_lost(self, done: Outcome) -> str:
        """Return why a worker's parts are lost; empty if an earlier part of the worker was found, or this one is.

        Where storage does not answer, that is not known: a line says so once, and the worker's next part is looked for.
        A line reports each node once; of its other parts, which may be many, none is looked for.

        Args:
            done: outcome of a shard that this run made, or whose part the worker found.
        """
        worker = done.worker
        node = done.node or worker
        if node in self._rejected:
            return self._rejected[node]
        if worker in self._found:
            return ""
        uri = store.part_uri(self._output, cast(int, done.shard_id), self._digest)
        try:
            there = storage.look_again(lambda: storage.exists(uri), _LOOK_AGAIN_S)
        except DatasetError as error:
            if not self._told:
                self._note(f"whether workers write where this process reads is looked at later: {error}")
            self._told = True
            return ""
        if there:
            self._found.add(worker)
            return ""
        did = "found" if done.by_another else "wrote"
        why = f"worker {worker} {did} shard {done.shard_id} as {uri!r}, and it is not there: {NOT_SHARED}"
        self._rejected[node] = why
        self._note(f"node {node} gets no more work: {why}")
        return why
