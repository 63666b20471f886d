"""What can go wrong in the world outside, as one family of exceptions.

Every message names the thing and the value received. All of them survive pickling, because Ray carries them from
an actor to the driver.
"""

from typing import Any

_LONGEST_SHOWN = 60


class PipelineError(Exception):
    """Base of all errors that a user can mend; a job prints it as one line.

    Message and pickle derive from the arguments it was made of: Ray Data appends advice of its own to `args`.
    """

    def __init__(self, *made_of: Any) -> None:
        super().__init__(*made_of)
        self._made_of = made_of

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._made_of

    def __str__(self) -> str:
        return " ".join(map(str, self._made_of))


class ConfigError(PipelineError):
    """A setting is unknown, ill-typed, or impossible together with another."""


class ModelError(PipelineError):
    """A model is unknown, of a family that cannot be run on a token subset, or does not fit what is asked of it."""


class OtherModelError(ModelError):
    """A worker loaded another model than the driver did: nothing may be made with it, on any machine."""


class CheckpointError(PipelineError):
    """A checkpoint is missing, corrupt, unsafe to read, or belongs to another model."""


class DatasetError(PipelineError):
    """A dataset is missing, truncated, foreign, of another config, or cannot be written."""


class ClusterError(PipelineError):
    """The Ray cluster to join is not there, does not answer, or is of another kind or version; or none could start."""


class NonFiniteError(PipelineError):
    """A value became NaN or infinite during inversion: running it again would end the same way.

    Args:
        step: iteration, counted from 0.
        term: name of the loss term, or `pixels`.
        shard_id: the shard it happened in, where one is known.
    """

    def __init__(self, step: int, term: str, shard_id: int | None = None) -> None:
        super().__init__(step, term, shard_id)
        self.step = step
        self.term = term
        self.shard_id = shard_id

    def __str__(self) -> str:
        place = "" if self.shard_id is None else f"shard {self.shard_id}: "
        return f"{place}{self.term} is not finite at step {self.step}"


class IncompleteError(PipelineError):
    """A job ended with work left undone; the message says what is missing."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return a library's own error for a message of ours: its type and text on one line, cut to `limit` characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:limit]


def shown(value: Any) -> str:
    """Return a value for a message: on one line, and cut where it is long."""
    text = " ".join(line.strip() for line in repr(value).splitlines())
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."
