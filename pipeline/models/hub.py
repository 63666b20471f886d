"""Say in one line that weights cannot be downloaded at once, where the client prints each attempt."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

# Logger of the client that timm downloads with.
_CLIENT = "huggingface_hub.utils._http"
_ATTEMPTS = ("thrown while requesting", "Retrying in ")


@contextmanager
def quiet_attempts(name: str) -> Iterator[None]:
    """Replace the client's lines about failed attempts by one.

    Args:
        name: name of the model whose weights are downloaded, for the line.
    """
    client, attempts = logging.getLogger(_CLIENT), _Attempts(name)
    client.addFilter(attempts)
    try:
        yield
    finally:
        client.removeFilter(attempts)


class _Attempts(logging.Filter):
    def __init__(self, model: str) -> None:
        super().__init__()
        self._model, self._said = model, False

    def filter(self, record: logging.LogRecord) -> bool:
        if not any(text in record.getMessage() for text in _ATTEMPTS):
            return True
        first, self._said = not self._said, True
        # The client prints this text in place of its own.
        record.msg, record.args = f"the weights of {self._model!r} cannot be downloaded yet, trying for a minute", ()
        return first
