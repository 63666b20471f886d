"""Settings of a model: which one, its weights, and its preprocessing."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from pipeline.checks import check_finite, check_range, check_types, describe_normalization_fault
from pipeline.errors import ConfigError
from pipeline.models.arguments import check_model_args
from pipeline.models.preprocessing import (
    PREPROCESSING,
    CropMode,
    Interpolation,
    describe_crop_fault,
)
from pipeline.pictures import PICTURE_CHANNELS
from pipeline.storage import absolute, is_local

LOCAL_DIR = "local-dir:"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model, the source of its weights, and the way it sees real images.

    Args:
        name: a timm name (`deit_tiny_patch16_224.fb_in1k`) or `local-dir:FOLDER` as timm or transformers saves
            one.
        pretrained: download timm's own weights for that name.
        checkpoint: weights at any fsspec URI: `.safetensors`, `.pth`, `.npz`, or the index of a sharded checkpoint.
        use_ema: prefer averaged weights (`ema` or `swa` in the key) where a checkpoint has both.
        num_classes: width of the classifier; by default the model's own.
        in_chans: channels of the images, 1 or 3; by default the model's own.
        model_args: further arguments of the model, such as `{img_size: 32, patch_size: 4}`. Weights that were trained
            at another image size are resampled only where `img_size` is given here.
        class_names: a list, or the URI of a file: a JSON list, a JSON object (`{"0": "cat"}`, `{"cat": 0}`, or one
            with `id2label`, `label2id`, `class_to_idx` or `label_names`), or one name per line. By default timm's names
            where the model has them, else numbers.
        mean: mean per channel, of pixels in [0, 1]; by default the model's own.
        std: standard deviation per channel, of pixels in [0, 1]; by default the model's own.
        interpolation: how real images are resized. This and the next two are by default the model's own.
        crop_pct: share of the resized image that the center crop keeps; above 1 the image is padded.
        crop_mode: `center` crops the shorter edge's square, `squash` resizes without keeping the aspect ratio, `border`
            pads the shorter edge.
    """

    name: str
    pretrained: bool = False
    checkpoint: str | None = None
    use_ema: bool = True
    num_classes: int | None = None
    in_chans: int | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    # A tuple, because jsonargparse takes minutes to parse a list of thousands.
    class_names: tuple[str, ...] | str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    interpolation: Interpolation | None = None
    crop_pct: float | None = None
    crop_mode: CropMode | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_finite(self)
        if self.in_chans not in (None, *PICTURE_CHANNELS):
            raise ConfigError(f"in_chans must be 1 or 3, not {self.in_chans}")
        check_range("num_classes", self.num_classes, 1)
        if self.pretrained and self.checkpoint:
            raise ConfigError(f"model {self.name!r}: give pretrained or checkpoint, not both ({self.checkpoint!r})")
        normalization = {"mean": self.mean, "std": self.std}
        given = {name: value for name, value in normalization.items() if value is not None}
        if fault := describe_normalization_fault(given) or describe_crop_fault(self.preprocessing()):
            raise ConfigError(fault)
        check_model_args(self.model_args, {"num_classes": self.num_classes, "in_chans": self.in_chans})

    def preprocessing(self) -> dict[str, Any]:
        """Return how real images are resized and cropped, as far as this config sets it."""
        return {name: getattr(self, name) for name in PREPROCESSING if getattr(self, name) is not None}

    def located(self) -> "ModelConfig":
        """Return a copy with absolute local paths, because Ray's workers have other working folders.

        Raises:
            ConfigError: the folder of a `local-dir:` name is not local.
        """
        folder = self.name.removeprefix(LOCAL_DIR)
        if folder != self.name and not is_local(folder):
            raise ConfigError(
                f"model {self.name!r}: {LOCAL_DIR} takes a folder of this machine, or of a disk that all machines "
                "share; for an object store, give a timm name, and the file of weights as checkpoint"
            )
        return dataclasses.replace(
            self,
            name=self.name if folder == self.name else LOCAL_DIR + absolute(folder),
            checkpoint=None if self.checkpoint is None else absolute(self.checkpoint),
            class_names=absolute(self.class_names) if isinstance(self.class_names, str) else self.class_names,
        )
