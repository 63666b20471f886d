"""TensorBoard's event files at any fsspec location. A process that resumes a run adds a file of its own.

tensorboardX, which Ray Train brings, has the messages and checksums. Its writer and the one of torch know few stores,
and would report the steps of a resumed run twice.
"""

import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.errors import ConfigError, PipelineError
from pipeline.tracking.places import RESULT, Status

_PREFIX = "events.out.tfevents."
_SETTINGS = "settings"
# Object stores cannot append: the file is written again, at most so often, and a new one begun beyond so many bytes.
_REWRITE_S, _LARGEST = 30.0, 1_000_000
_LENGTH, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")


def check_installed() -> None:
    """Refuse to report where tensorboardX is missing.

    Raises:
        ConfigError: tensorboardX is not installed.
    """
    if find_spec("tensorboardX") is None:
        raise ConfigError("tracking.tensorboard needs a package that is not installed: pip install '.[tensorboard]'")


class EventFolder:
    """The event files of one run.

    Args:
        folder: folder of all runs.
        run: name of this run's subfolder.
    """

    errors: tuple[type[Exception], ...] = (PipelineError, OSError)

    def __init__(self, folder: str, run: str) -> None:
        self.name = f"TensorBoard's folder {folder!r}"
        self._folder, self._local = storage.join(folder, run), storage.is_local(folder)
        self._stem = f"{_PREFIX}{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._file, self._content, self._written = 0, b"", 0.0
        self._last: dict[str, int] = {}

    def begin(self, settings: Mapping[str, str]) -> None:
        """Find out which figures were reported before; report the settings of a new run."""
        from tensorboardX import summary

        for event in _read_all(self._folder):
            for value in event.summary.value:
                # Files come in the order of their names: the tenth is before the second.
                self._last[value.tag] = max(event.step, self._last.get(value.tag, event.step))
        if not self._last:
            rows = "".join(f"| {name} | `{value}` |\n" for name, value in settings.items())
            self._write(_event(0, summary.text(_SETTINGS, f"| setting | value |\n| --- | --- |\n{rows}")))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Report figures of a step, except figures that were reported for this or a later step before."""
        from tensorboardX.proto.summary_pb2 import Summary  # type: ignore[attr-defined]

        new = {name: value for name, value in values.items() if step > self._last.get(name, -1)}
        if new:
            self._last |= dict.fromkeys(new, step)
            given = [Summary.Value(tag=name, simple_value=value) for name, value in new.items()]
            self._write(_event(step, Summary(value=given)))

    def end(self, status: Status, values: Mapping[str, float]) -> None:
        """Report the result, at the last step, but after an earlier result, because TensorBoard shows the last.

        A run may be repeated without further steps: a calibration has none, or with `qat` those of the same training.
        """
        step = max((last + name.startswith(RESULT) for name, last in self._last.items()), default=0)
        self.add(step, values)
        if not self._local:
            self._rewrite()

    def _write(self, record: bytes) -> None:
        if not self._content and not self._written:
            record = _first_record() + record
        if self._local:
            self._append(record)
            return
        self._content += record
        if time.monotonic() - self._written > _REWRITE_S:
            self._rewrite()
        if len(self._content) > _LARGEST:
            self._rewrite()
            self._file, self._content, self._written = self._file + 1, b"", 0.0

    def _append(self, record: bytes) -> None:
        """Add to the local file: TensorBoard keeps it open, and would not see one that takes its place."""
        path = Path(storage.filesystem(self._folder)[1])
        path.mkdir(parents=True, exist_ok=True)
        with (path / self._name_of_file()).open("ab") as file:
            file.write(record)
        self._written = time.monotonic()

    def _rewrite(self) -> None:
        if self._content:
            storage.write_bytes(storage.join(self._folder, self._name_of_file()), self._content)
            self._written = time.monotonic()

    def _name_of_file(self) -> str:
        return f"{self._stem}.{self._file}"


def _first_record() -> bytes:
    from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]

    return _record(Event(wall_time=time.time(), file_version="brain.Event:2"))


def _event(step: int, summary: Any) -> bytes:
    from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]

    return _record(Event(wall_time=time.time(), step=step, summary=summary))


def _record(event: Any) -> bytes:
    """Return an event as a file holds it, a TFRecord: length, its checksum, content, its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    content = event.SerializeToString()
    length = _LENGTH.pack(len(content))
    return b"".join((length, _CHECKSUM.pack(masked_crc32c(length)), content, _CHECKSUM.pack(masked_crc32c(content))))


def _read_all(folder: str) -> Iterator[Any]:
    """Yield the events in a folder, file after file."""
    for name in storage.list_files(folder):
        if name.startswith(_PREFIX):
            yield from _read(storage.read_bytes(storage.join(folder, name)))


def _read(content: bytes) -> Iterator[Any]:
    """Yield the events of a file. A process that was killed may have left the last one in part."""
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]

    start = 0
    while start + _LENGTH.size <= len(content):
        begin = start + _LENGTH.size + _CHECKSUM.size
        end = begin + _LENGTH.unpack_from(content, start)[0]
        if end + _CHECKSUM.size > len(content):
            return
        try:
            yield Event.FromString(content[begin:end])
        except DecodeError:
            return
        start = end + _CHECKSUM.size
