"""Which model, and where its weights come from."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from pipeline.checks import check_finite
from pipeline.errors import ConfigError
from pipeline.storage import absolute

LOCAL_DIR = "local-dir:"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and where its weights come from.

    Args:
        name: a timm name (`deit_tiny_patch16_224.fb_in1k`) or `local-dir:FOLDER` as timm saves one.
        pretrained: take timm's own weights for that name (downloaded).
        checkpoint: weights at any fsspec URI, `.safetensors` or `.pth`.
        use_ema: prefer averaged weights where a checkpoint has both.
        num_classes: width of the classifier; by default the model's own.
        in_chans: channels of the images, 1 or 3; by default the model's own.
        model_args: further arguments of `timm.create_model`, such as `{img_size: 32, patch_size: 4}`.
        class_names: a list, or the URI of a file (JSON list, or one name a line); by default timm's names where
            the model says so, else numbers.
        mean: of the pixels in [0, 1], one a channel; by default the model's own.
        std: likewise.
    """

    name: str
    pretrained: bool = False
    checkpoint: str | None = None
    use_ema: bool = True
    num_classes: int | None = None
    in_chans: int | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    # Not a list: the parser of configs takes minutes for a list of thousands.
    class_names: tuple[str, ...] | str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None

    def __post_init__(self) -> None:
        check_finite(self)
        if self.in_chans not in (None, 1, 3):
            raise ConfigError(f"in_chans must be 1 or 3, not {self.in_chans}")
        if self.num_classes is not None and self.num_classes < 1:
            raise ConfigError(f"num_classes must be at least 1, not {self.num_classes}")
        if self.pretrained and self.checkpoint:
            raise ConfigError(f"model {self.name!r}: give pretrained or checkpoint, not both ({self.checkpoint!r})")
        if self.std is not None and min(self.std, default=0.0) <= 0:
            raise ConfigError(f"std must be positive, not {self.std}")

    def located(self) -> "ModelConfig":
        """The same with absolute local paths: Ray's workers have working folders of their own."""
        folder = self.name.removeprefix(LOCAL_DIR)
        return dataclasses.replace(
            self,
            name=self.name if folder == self.name else LOCAL_DIR + absolute(folder),
            checkpoint=None if self.checkpoint is None else absolute(self.checkpoint),
            class_names=absolute(self.class_names) if isinstance(self.class_names, str) else self.class_names,
        )
