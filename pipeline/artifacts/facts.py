"""Facts that an artifact carries beside its weights: class names and normalization; and how classes are compared."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import CheckpointError
from pipeline.models import LoadedModel


@dataclass(frozen=True)
class Facts:
    """Facts of a model that its graph does not hold. None where a file does not state them.

    Attributes:
        class_names: one for each column of the logits, all different.
        mean, std: of pixels in [0, 1], one for each channel.
    """

    class_names: list[str] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def of(cls, loaded: LoadedModel) -> "Facts":
        """Return the facts of a loaded model; names that merely count its classes are none."""
        own: Any = getattr(loaded.model, "pretrained_cfg", None) or {}
        named = loaded.names_known or bool(own.get("label_names"))
        return cls(list(loaded.class_names) if named else None, loaded.mean, loaded.std)

    def to_strings(self) -> dict[str, str]:
        """Return the facts that are known, each as JSON: the metadata of ONNX, and of a `.pt2`, holds strings."""
        return {name: json.dumps(value) for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_strings(cls, values: Mapping[str, str], uri: str) -> "Facts":
        """Read what `to_strings` wrote; other keys are left alone.

        Raises:
            CheckpointError: a value is not what its key says.
        """
        try:
            return cls(
                class_names=_names(values["class_names"]) if "class_names" in values else None,
                mean=_numbers(values["mean"]) if "mean" in values else None,
                std=_numbers(values["std"]) if "std" in values else None,
            )
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{uri!r} has metadata that cannot be read: {error}") from error


def _names(text: str) -> list[str]:
    names = json.loads(text)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names is not a list of names: {text[:80]!r}")
    return names


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(value) for value in json.loads(text))


def class_columns(own: Sequence[str] | None, wanted: Sequence[str] | None, num_classes: int, uri: str) -> list[int]:
    """Return which column of an artifact's logits belongs to each class of the teacher.

    Args:
        own: the artifact's class names; None where it states none.
        wanted: the teacher's class names; None where nobody named them.
        num_classes: of the teacher.
        uri: the artifact, for messages.

    Raises:
        CheckpointError: the artifact has other classes than the teacher; the message names those that differ.
    """
    if own is None or wanted is None or list(own) == list(wanted):
        return list(range(num_classes))
    place = {name: column for column, name in enumerate(own)}
    if len(place) == len(own) and place.keys() == set(wanted):
        return [place[name] for name in wanted]
    foreign = [name for name in own if name not in set(wanted)]
    missing = [name for name in wanted if name not in place]
    parts = [_differing("which the teacher does not have", foreign), _differing("of the teacher's it lacks", missing)]
    repeated = [] if len(place) == len(own) else ["names that repeat"]
    raise CheckpointError(f"{uri!r} has other classes than the teacher: {'; '.join([*filter(None, parts), *repeated])}")


def _differing(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what}: {', '.join(map(repr, names[:3]))}{more}" if names else ""
