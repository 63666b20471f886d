"""Settings of an evaluation."""

from dataclasses import dataclass
from typing import ClassVar

from pipeline.checks import check_located, check_range, check_types
from pipeline.config.former_names import LABELED
from pipeline.errors import ConfigError
from pipeline.models import ModelConfig


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Score artifacts, or the teacher itself, on labeled images.

    Args:
        teacher: the model that defines normalization, image size and class names; it is scored itself if no artifact is
            given.
        labeled: URI of labeled images: Parquet with `image` and `label`, or a folder with a subfolder for each class.
        labeled_split: split to read, such as `test`, if there are several.
        artifacts: URI of an artifact of the teacher, or of several: `.pt2`, `.onnx` (weights in further files are read
            from beside it), weights for its architecture (`.safetensors`, `.pth`, `.npz`, `.index.json`; a
            `config.json` beside them is read for their class names and normalization), or folders as timm loads with
            `local-dir:`, which bring their own model. Classes that an artifact names in another order than the teacher
            are put in the teacher's; other classes, or another number of them, are refused.
        allow_compiled: open compiled packages (`.aoti.pt2`) among the artifacts. They are machine code, which runs with
            all rights of the job: allow it only for files whose origin you trust.
        output: where `evaluation.json` and `report.html` go; nowhere by default.
        batch_size: images per forward pass.
    """

    FORMER_NAMES: ClassVar[dict[str, str]] = LABELED

    teacher: ModelConfig
    labeled: str
    labeled_split: str | None = None
    artifacts: str | list[str] | None = None
    allow_compiled: bool = False
    output: str | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        check_types(self)
        check_range("batch_size", self.batch_size, 1)
        check_located("labeled", self.labeled)
        if len(set(self.uris)) != len(self.uris):
            raise ConfigError(f"artifacts must differ: {self.uris}")

    @property
    def uris(self) -> list[str]:
        """URIs of the artifacts; empty if the teacher is scored itself."""
        return [self.artifacts] if isinstance(self.artifacts, str) else self.artifacts or []
