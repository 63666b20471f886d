"""An object store for `benchmarks.chaos`: a server that speaks S3, in this process, and fails when told to."""

import itertools
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any
from urllib.request import Request, urlopen

# A part of the extra `test`.
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from benchmarks.chaos_faults import Kind

BUCKET = "chaos"
# How long a trouble lasts. A worker tries four times in 10.5 seconds to write a part.
_LASTS_S = 6.0
# A request of a slow store.
_SLOW_S = 0.5
# Of the requests to a store that fails.
_ONE_IN = 5
_PART = re.compile(r"/data/part-(\d+)-[0-9a-f]{8}\.parquet$")
_ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>{}</Message></Error>'
# What S3 says when it is overloaded, and MinIO when its disks are full.
_ANSWERS = {
    "store_fails": ("503 Slow Down", "SlowDown", "Please reduce your request rate."),
    "store_full": ("507 Insufficient Storage", "XMinioStorageFull", "Storage backend has reached its capacity."),
}

Start = Callable[..., Any]


class Store:
    """The server, and what was asked of it.

    Attributes:
        env: environment that leads to it.
        hit: name of a trouble → number of requests that had it.
        written: (folder below the bucket, shard id) → when its part was written.
    """

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.WARNING)
        self.hit: Counter[str] = Counter()
        self.written: dict[tuple[str, int], list[float]] = {}
        self._until: dict[Kind, float] = {}
        self._names: dict[Kind, str] = {}
        self._requests = itertools.count()
        self._app: Any = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, True, request_handler=MotoRequestHandler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.env = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_address[1]}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        with urlopen(Request(f"{self.env['AWS_ENDPOINT_URL']}/{BUCKET}", method="PUT")):
            pass

    def have(self, trouble: Kind, name: str) -> None:
        """Have a trouble for some seconds from now on, and count its requests under a name."""
        self._until[trouble], self._names[trouble] = time.monotonic() + _LASTS_S, name

    def calm(self) -> None:
        """End all troubles."""
        self._until.clear()

    def close(self) -> None:
        self._server.shutdown()

    def _has(self, trouble: Kind) -> bool:
        return time.monotonic() < self._until.get(trouble, 0)

    def _answer(self, environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if self._has("store_slow"):
            self.hit[self._names["store_slow"]] += 1
            time.sleep(_SLOW_S)
        if self._has("store_fails") and next(self._requests) % _ONE_IN == 0:
            return self._refuse("store_fails", environ, start_response)
        if self._has("store_full") and method == "PUT":
            return self._refuse("store_full", environ, start_response)
        answer: Iterable[bytes] = self._app(environ, start_response)
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
