"""An object store for `benchmarks.chaos`: a server that speaks S3, in this process, and fails when told to."""

import itertools
import re
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from benchmarks.chaos_faults import Kind
from benchmarks.loopback import LoopbackStore, Start

BUCKET = "chaos"
# How long a trouble lasts. A worker tries four times in 10.5 seconds to write a part.
_LASTS_S = 6.0
# A request of a slow store.
_SLOW_S = 0.5
# One in so many requests to the store fails.
_ONE_IN = 5
_PART = re.compile(r"/data/part-(\d+)-[0-9a-f]{8}\.parquet$")
_ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>{}</Message></Error>'
# What S3 says when it is overloaded, and MinIO when its disks are full.
_ANSWERS = {
    "store_fails": ("503 Slow Down", "SlowDown", "Please reduce your request rate."),
    "store_full": ("507 Insufficient Storage", "XMinioStorageFull", "Storage backend has reached its capacity."),
}


class FaultyStore(LoopbackStore):
    """The server, and what was asked of it.

    Attributes:
        env: environment that leads to it.
        hit: name of a trouble → number of requests that had it.
        written: (folder below the bucket, shard id) → when its part was written.
    """

    def __init__(self) -> None:
        self.hit: Counter[str] = Counter()
        self.written: dict[tuple[str, int], list[float]] = {}
        self._until: dict[Kind, float] = {}
        self._names: dict[Kind, str] = {}
        self._requests = itertools.count()
        super().__init__(BUCKET)

    def have(self, trouble: Kind, name: str) -> None:
        """Have a trouble for some seconds from now on, and count its requests under a name."""
        self._until[trouble], self._names[trouble] = time.monotonic() + _LASTS_S, name

    def calm(self) -> None:
        """End all troubles."""
        self._until.clear()

    def _has(self, trouble: Kind) -> bool:
        return time.monotonic() < self._until.get(trouble, 0)

    def answer(self, environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if self._has("store_slow"):
            self.hit[self._names["store_slow"]] += 1
            time.sleep(_SLOW_S)
        if self._has("store_fails") and next(self._requests) % _ONE_IN == 0:
            return self._refuse("store_fails", environ, start_response)
        if self._has("store_full") and method == "PUT":
            return self._refuse("store_full", environ, start_response)
        answer: Iterable[bytes] = super().answer(environ, start_response)
        part = _PART.search(path)
        if method == "PUT" and part is not None:
            folder = path[: part.start()].removeprefix(f"/{BUCKET}/")
            self.written.setdefault((folder, int(part[1])), []).append(time.time())
        return answer

    def _refuse(self, trouble: Kind, environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        self.hit[self._names[trouble]] += 1
        # What is left unread would be taken for the next request.
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status, code, message = _ANSWERS[trouble]
        body = b"" if environ["REQUEST_METHOD"] == "HEAD" else _ERROR.format(code, message).encode()
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]
