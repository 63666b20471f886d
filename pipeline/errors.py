"""Exceptions for everything that a user can fix, under one base class.

Every message names the thing and the value received. All of them can be pickled, because Ray carries them from actors
to the driver.
"""

from collections.abc import Iterable
from typing import Any

from pipeline.credentials import without_credentials
from pipeline.transient import is_transient

_LONGEST_QUOTED = 60
# Number of names that a message lists.
_FEW = 3


class PipelineError(Exception):
    """Base of all errors that a user can fix; a job prints it as one line.

    Message and pickle use the original arguments, because Ray Data appends advice of its own to `args`. Credentials in
    them are left out at once, so that they reach no other process, file or log.
    """

    # Set on classes whose errors are always worth a retry, and on unpickled errors, whose causes the pickle loses.
    _transient = False

    def __init__(self, *made_of: Any) -> None:
        made_of = tuple(without_credentials(part) if isinstance(part, str) else part for part in made_of)
        super().__init__(*made_of)
        self._made_of = made_of

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._made_of, {"_transient": True} if self.is_transient else None

    def __str__(self) -> str:
        return " ".join(map(str, self._made_of))

    @property
    def is_transient(self) -> bool:
        """Whether trying again may help, as where a store did not answer; a damaged file stays damaged."""
        return self._transient or is_transient(self)


class ConfigError(PipelineError):
    """A setting is unknown, has a wrong type, or is impossible together with another."""


class ModelError(PipelineError):
    """A model is unknown, cannot be run on a token subset, or does not suit its task."""


class FormError(ModelError):
    """A model has no form in a format, which lacks an operator or a bit width; it will have none another time."""


class OtherModelError(ModelError):
    """A worker loaded another model than the driver did: nothing may be made with it, on any machine."""


class CheckpointError(PipelineError):
    """A checkpoint is missing, corrupt, unsafe to read, or belongs to another model."""


class DatasetError(PipelineError):
    """A dataset is missing, truncated, foreign, of another config, or cannot be written."""


class DamagedError(DatasetError):
    """A file of a dataset was read, and its content is not what it must be; its writer has to write it again."""


class ClusterError(PipelineError):
    """The Ray cluster to join does not exist, does not answer, or has another version; or none could be started."""

    _transient = True


class NonFiniteError(PipelineError):
    """A value became NaN or infinite during inversion; running it again would give the same result.

    Args:
        step: iteration, counted from 0.
        term: name of the loss term, or `pixels`.
        shard_id: number of the shard in which it happened; None if it is not known.
    """

    def __init__(self, step: int, term: str, shard_id: int | None = None) -> None:
        super().__init__(step, term, shard_id)
        self.step = step
        self.term = term
        self.shard_id = shard_id

    def __str__(self) -> str:
        shard = "" if self.shard_id is None else f"shard {self.shard_id}: "
        return f"{shard}{self.term} is not finite at step {self.step}"


class IncompleteError(PipelineError):
    """A job ended with work left undone; the message says what is missing."""

    _transient = True


class MissingImagesError(IncompleteError):
    """Images that a training waits for will not be made; workers that are started again would wait in vain too."""

    _transient = False


def as_line(text: object) -> str:
    """Return a text, or that of an error, on one line: runs of white space become one space."""
    return " ".join(str(text).split())


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return type and text of a library's error on one line, without credentials, cut to `limit` characters."""
    return without_credentials(as_line(f"{type(error).__name__}: {error}"))[:limit]


def quoted(value: Any) -> str:
    """Return a value's text for a message, on one line, without credentials, and cut if it is long."""
    # Credentials are left out before the cut, which may go through one.
    text = without_credentials(" ".join(line.strip() for line in repr(value).splitlines()))
    return text if len(text) <= _LONGEST_QUOTED else f"{text[: _LONGEST_QUOTED - 3]}..."


def first_few(names: Iterable[str]) -> str:
    """Return names for a message, the first of them with an ellipsis if there are more."""
    names = list(names)
    return ", ".join(names[:_FEW]) + (", ..." if len(names) > _FEW else "")
