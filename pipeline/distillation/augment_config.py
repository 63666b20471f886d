"""Settings of the views that a student is trained on."""

from dataclasses import dataclass, field

from pipeline.checks import check_finite, check_range, check_ranges, check_types
from pipeline.config import former_default
from pipeline.errors import ConfigError

_SHARES = ("translate", "flip", "brightness", "contrast", "saturation", "mixup", "cutmix", "erase")
# Settings of changes that need the pixels between the kept patches.
WHOLE_ONLY = ("degrees", "translate", "scale", "flip", "blur", "mixup")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random views of the images, a new one of each image in each epoch; teacher and student see the same one.

    The strength of each change is drawn for each image, uniformly from no change up to the value that is set. Images
    that a model reads on kept patches alone cannot be moved, blurred or mixed up; they take the other changes. `erase`
    turns some of them into whole images.

    Args:
        degrees: largest rotation, in degrees.
        translate: largest shift, as a share of the side.
        scale: largest change of size; 0.1 scales by 0.9 to 1.1.
        flip: probability of mirroring; use 0 where mirrored objects belong to no class, as with digits.
        blur: largest standard deviation of a Gaussian blur, in pixels.
        brightness: largest relative change of brightness.
        contrast: largest relative change of contrast, around the image's mean gray.
        saturation: largest relative change of saturation; for images of three channels.
        noise: largest standard deviation of Gaussian noise, in units of the normalized pixels.
        mixup: probability of a weighted mean with another image of the batch.
        cutmix: probability of pasting a block of another image's patches; on kept patches, of adding the patches that
            two other images keep.
        erase: probability of painting patches in one random gray. On a whole image: a block, or scattered patches
            (Random Erasing, Zhong et al., AAAI 2020). On an image with stopped patches: all of these, which makes it a
            whole image that takes every other change.
    """

    degrees: float = 10.0
    translate: float = 0.125
    scale: float = 0.1
    flip: float = 0.0
    blur: float = 0.7
    brightness: float = 0.0
    contrast: float = 0.4
    saturation: float = 0.0
    noise: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.5
    erase: float = field(default=0.5, metadata=former_default(0.0))

    def __post_init__(self) -> None:
        check_types(self, "augment.")
        check_finite(self, "augment.")
        check_ranges(self, ("blur", "noise"), 0, prefix="augment.")
        check_range("augment.degrees", self.degrees, 0, 180)
        check_range("augment.scale", self.scale, 0, 1, open_high=True)
        for name in _SHARES:
            check_range(f"augment.{name}", getattr(self, name), 0, 1)

    def check_channels(self, setting: str, channels: int) -> None:
        """Check that images of so many channels can be changed so.

        Args:
            setting: name of the setting that holds these settings, for the message.
            channels: number of channels of the images.

        Raises:
            ConfigError: the saturation of images without colors was to be changed.
        """
        if self.saturation and channels != 3:
            raise ConfigError(
                f"{setting}.saturation is {self.saturation:g}, but the teacher's images have {channels} channels, not "
                "red, green and blue: set it to 0"
            )
