"""Serve S3 on loopback, from this process. Needs the extra `test`."""

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any
from urllib.request import Request, urlopen

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

Start = Callable[..., Any]


class LoopbackStore:
    """An S3 server with one bucket.

    Args:
        bucket: name of the bucket.

    Attributes:
        env: environment that leads to it.
    """

    def __init__(self, bucket: str) -> None:
        # Otherwise it prints a line for each request.
        logging.getLogger("werkzeug").setLevel(logging.WARNING)
        self._app: Any = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self.answer, True, request_handler=MotoRequestHandler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.env = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_address[1]}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        with urlopen(Request(f"{self.env['AWS_ENDPOINT_URL']}/{bucket}", method="PUT")):
            pass

    def answer(self, environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        """Answer a request, as WSGI has it; subclasses count requests, or refuse some."""
        return self._app(environ, start_response)

    def close(self) -> None:
        self._server.shutdown()
