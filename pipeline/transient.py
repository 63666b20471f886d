"""Distinguish errors that may pass from those that would come again. Standard library only."""

import errno
import sys
from collections.abc import Iterable, Iterator
from http import HTTPStatus

# Errors that the drivers of object stores do not turn into an OSError that says more: no credentials, no endpoint.
_DRIVER_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("aiohttp", "ClientError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("gcsfs.retry", "HttpError"),
    ("requests.exceptions", "RequestException"),
    # Hugging Face's hub, its former client of HTTP and its present one.
    ("httpx", "HTTPError"),
    ("httpx2", "HTTPError"),
    ("huggingface_hub.errors", "EntryNotFoundError"),
    ("huggingface_hub.errors", "XetDownloadError"),
    ("azure.core.exceptions", "AzureError"),
    ("paramiko.ssh_exception", "SSHException"),
    ("smbprotocol.exceptions", "SMBException"),
    ("fsspec.implementations.ftp", "Error"),
)
# Driver errors that are about the request or the user, and state no HTTP status.
_LASTING_DRIVER_ERRORS = (
    ("huggingface_hub.errors", "EntryNotFoundError"),
    ("huggingface_hub.errors", "OfflineModeIsEnabled"),
    ("azure.core.exceptions", "ClientAuthenticationError"),
    ("paramiko.ssh_exception", "AuthenticationException"),
    ("paramiko.ssh_exception", "BadHostKeyException"),
    ("smbprotocol.exceptions", "SMBAuthenticationError"),
    ("fsspec.implementations.ftp", "error_perm"),
)
# Error numbers of the system and the drivers for a location that is closed to this user, or cannot be a file.
_REFUSALS = {
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}
# Errors that usually repeat but may still be retried on storage: missing files, errors of pyarrow and Pillow without an
# errno, and EINVAL, which S3 also reports for data damaged on its way.
_LASTING = {None, errno.ENOENT, errno.EINVAL}
# Errors that may pass, but come from this machine: its disk is full, or another resource is used up.
_OF_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_REFUSAL_TYPES = (NotADirectoryError, IsADirectoryError, PermissionError)
_STATUSES = range(100, 600)
# Statuses with which a web server answers a request that is valid.
_BUSY = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}


def driver_errors() -> tuple[type[BaseException], ...]:
    """Return the errors of the drivers in use; a module that was not imported cannot raise any."""
    return _loaded(_DRIVER_ERRORS)


def _loaded(errors: Iterable[tuple[str, str]]) -> tuple[type[BaseException], ...]:
    """Return the error classes, given their modules and names, whose modules are loaded and have them."""
    there = ((sys.modules[module], name) for module, name in errors if module in sys.modules)
    return tuple(getattr(module, name) for module, name in there if hasattr(module, name))


def is_transient(error: BaseException) -> bool:
    """Return whether an error, or one that led to it, comes from a network, a store or a disk, and may pass.

    A file that is missing or closed to this user stays so, and the content of a file does not change.
    """
    return any(map(_may_pass, causes(error)))


def is_of_store(error: BaseException) -> bool:
    """Return whether an error is transient, and comes from a network or a store rather than from this machine."""
    return is_transient(error) and not any(getattr(cause, "errno", None) in _OF_MACHINE for cause in causes(error))


def is_refusal(error: BaseException) -> bool:
    """Return whether storage refused a request, and would refuse it again: forbidden, or no path of a file.

    Other errors of storage are worth another attempt, more of them than `is_transient` names: a file is gone where
    another run cleared temporary files, and a driver's OSError may have no errno.
    """
    return any(map(_is_refused, causes(error)))


def is_missing(error: BaseException | None) -> bool:
    """Return whether an error says that there is no such file or folder."""
    # That of smbprotocol is an OSError with this errno, and no FileNotFoundError.
    return isinstance(error, FileNotFoundError | NotADirectoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOENT
    )


def is_forbidden(error: OSError) -> bool:
    """Return whether storage denied access."""
    # gcsfs raises a plain OSError for it.
    return isinstance(error, PermissionError) or str(error).startswith("Forbidden")


def causes(error: BaseException, *, wrapped_as: str | None = None) -> Iterator[BaseException]:
    """Yield an error, the error that it was raised from, and so on to the first one.

    Args:
        error: the last error of the chain.
        wrapped_as: name of an attribute in which a library keeps the error that it wraps. Where an error has it, the
            chain goes on there, and not with `__cause__`.
    """
    cause: BaseException | None = error
    seen: set[int] = set()
    # A chain may be a circle: Python lets an error be raised from one that it caused.
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        wrapped: BaseException | None = None if wrapped_as is None else getattr(cause, wrapped_as, None)
        cause = wrapped or cause.__cause__


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, driver_errors()):
        return _is_answer_of_busy_server(error)
    if isinstance(error, ConnectionError | TimeoutError):
        return not isinstance(error, _loaded(_LASTING_DRIVER_ERRORS))
    lasting = isinstance(error, FileNotFoundError) or getattr(error, "errno", None) in _LASTING
    return isinstance(error, OSError) and not lasting and not _is_refused(error)


def _is_refused(error: BaseException) -> bool:
    if isinstance(error, driver_errors()):
        return not _is_answer_of_busy_server(error)
    return isinstance(error, OSError) and (
        isinstance(error, _REFUSAL_TYPES) or error.errno in _REFUSALS or is_forbidden(error)
    )


def _is_answer_of_busy_server(error: BaseException) -> bool:
    """Return whether the error of a driver is about the server or the network and not about the request."""
    if isinstance(error, _loaded(_LASTING_DRIVER_ERRORS)):
        return False
    status = _status(error)
    return status is None or status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _BUSY


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error states, or the answer that it is about; None if neither does."""
    for stating in (error, getattr(error, "response", None)):
        for name in ("status", "status_code", "code"):
            status = getattr(stating, name, None)
            if isinstance(status, int) and status in _STATUSES:
                return status
    return None
