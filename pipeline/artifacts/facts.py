"""Class names and normalization that an artifact carries, and how they are compared with a teacher's."""

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.checks import describe_normalization_fault
from pipeline.documents import parse_json
from pipeline.errors import CheckpointError, ModelError
from pipeline.models import LoadedModel
from pipeline.models.class_names import distinct_names
from pipeline.models.folders import describe_problem, read_model_config, stated_normalization
from pipeline.models.name_files import agreed_names, names_by_key, names_in_config

# Keys under which metadata holds class names: ours, Ultralytics', and those of transformers and timm.
_NAME_KEYS = ("class_names", "names", "id2label", "label2id", "label_names", "idx_to_class", "class_to_idx")


@dataclass(frozen=True)
class Facts:
    """Facts of a model that its graph does not hold. None where a file does not state them.

    Attributes:
        class_names: names of the classes, one for each column of the logits, all different.
        mean, std: mean and standard deviation of pixels in [0, 1], one number for each channel.
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
        """Read facts that `to_strings` wrote, and class names as other programs write them; other keys are ignored.

        Raises:
            CheckpointError: a value is not what its key says, two keys name other classes, or `mean` and `std` are not
                both there.
        """
        try:
            read = names_by_key({key: _parse(values[key]) for key in _NAME_KEYS if key in values})
            names = _distinct(agreed_names(read) or read.get("class_names"))
            return cls(names, **_normalization({key: _parse(values[key]) for key in ("mean", "std") if key in values}))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{uri!r} has metadata that cannot be read: {error}") from error

    @classmethod
    def beside(cls, uri: str) -> "Facts":
        """Return what a `config.json` beside weights says of them, as timm and transformers save both.

        Raises:
            CheckpointError: its class names or its normalization are impossible, or the model answers with no classes.
        """
        folder = uri.rpartition("/")[0] or "."
        config = read_model_config(folder)
        if problem := describe_problem(config):
            raise CheckpointError(f"{uri!r} {problem}, as the config.json beside it says, not one class")
        try:
            return cls(_distinct(names_in_config(config)), **stated_normalization(config))
        except ValueError as error:
            raise CheckpointError(f"the config.json beside {uri!r} {error}") from error


def _distinct(names: list[str] | None) -> list[str] | None:
    """Return names that differ, made different as those of a teacher are."""
    return None if names is None else distinct_names(names)


def _parse(text: str) -> Any:
    """Return what a text of metadata holds: JSON, or a literal of Python (Ultralytics writes `{0: 'person'}`)."""
    try:
        return parse_json(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"{text[:80]!r} is neither JSON nor a literal of Python") from error


def _normalization(values: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    if fault := describe_normalization_fault(values):
        raise ValueError(fault)
    if len(values) == 1:
        (stated,) = values
        raise ValueError(f"it states {stated} alone, without {'std' if stated == 'mean' else 'mean'}")
    return {name: tuple(map(float, numbers)) for name, numbers in values.items()}


def class_columns(own: Sequence[str] | None, wanted: Sequence[str] | None, num_classes: int, uri: str) -> list[int]:
    """Return which column of an artifact's logits belongs to each class of the teacher.

    Args:
        own: class names of the artifact; None if it states none.
        wanted: class names of the teacher; None if they are only numbers.
        num_classes: number of the teacher's classes.
        uri: location of the artifact, for messages.

    Raises:
        CheckpointError: the artifact has other classes than the teacher; the message names those that differ.
    """
    if own is None or wanted is None or list(own) == list(wanted):
        return list(range(num_classes))
    columns = {name: column for column, name in enumerate(own)}
    if len(columns) == len(own) and columns.keys() == set(wanted):
        return [columns[name] for name in wanted]
    foreign = [name for name in own if name not in set(wanted)]
    missing = [name for name in wanted if name not in columns]
    parts = [_differing("which the teacher does not have", foreign), _differing("of the teacher's it lacks", missing)]
    repeated = [] if len(columns) == len(own) else ["names that repeat"]
    raise CheckpointError(f"{uri!r} has other classes than the teacher: {'; '.join([*filter(None, parts), *repeated])}")


def check_class_order(student: LoadedModel, teacher: LoadedModel) -> None:
    """Refuse a trained model that has classes of the teacher's at other numbers: their logits would be compared.

    Names that the teacher does not have are left alone: the model may have been trained on other classes.

    Args:
        student: the trained model, with the classifier that it was trained with.
        teacher: the teacher that its answers are compared with.

    Raises:
        ModelError: a class has one number in the student and another in the teacher; the message names the class and
            both numbers.
    """
    own, wanted = (Facts.of(model).class_names or [] for model in (student, teacher))
    numbers = {name: number for number, name in enumerate(wanted)}
    for number, name in enumerate(own):
        if numbers.get(name, number) != number:
            raise ModelError(
                f"student {student.name!r} has the teacher's classes in another order: class {name!r} is its number "
                f"{number}, and {numbers[name]} of the teacher; put the rows of its classifier into the teacher's order"
            )


def _differing(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what}: {', '.join(map(repr, names[:3]))}{more}" if names else ""
