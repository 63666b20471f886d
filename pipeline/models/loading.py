"""Load a timm model with its class names and preprocessing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import timm.data
from PIL import Image
from torch import Tensor, nn

from pipeline.checks import describe_normalization_fault
from pipeline.errors import ConfigError, ModelError
from pipeline.models.class_names import class_names
from pipeline.models.config import LOCAL_DIR, ModelConfig
from pipeline.models.image_size import input_size_of
from pipeline.models.making import make_model
from pipeline.models.preprocessing import (
    PREPROCESSING,
    describe_crop_fault,
)
from pipeline.models.weights import check_finite_weights, weight_digest
from pipeline.pictures import PICTURE_CHANNELS, describe_channels
from pipeline.torch_modes import usual_modes


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, on the CPU, in float32, with its class names and preprocessing.

    Attributes:
        class_names: one name per class, all different.
        mean, std: mean and standard deviation of pixels in [0, 1], one number per channel.
        input_size: channels, height and width of an image; the last two in pixels.
        digest: SHA-256 of the weights.
        data_config: timm's resolved data config (interpolation, crop_pct, ...), in which the settings of `ModelConfig`
            replace the model's own.
        notices: messages for the user, one line each. Jobs print them on standard error at the start.
        preset: whether the file of weights has the layout of a library with preprocessing of its own, such as
            torchvision; mean and std are then that library's, unless the config sets them.
    """

    model: nn.Module
    name: str
    class_names: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: tuple[int, int, int]
    digest: str
    data_config: dict[str, Any]
    notices: tuple[str, ...] = ()
    preset: bool = False

    @property
    def names_known(self) -> bool:
        """Whether its classes have names other than their numbers."""
        return self.class_names != [str(label) for label in range(len(self.class_names))]


@usual_modes()
def load_model(config: ModelConfig, *, trained: bool = True) -> LoadedModel:
    """Make a model and load its weights.

    Args:
        config: settings that name the model, its weights and its preprocessing.
        trained: whether all weights must come from a file, as a teacher's must. A student may start from random weights
            or with a new head.

    Raises:
        ModelError: the name is unknown, the family does not take an argument, the class count is not that of the
            weights, or the number of channels is not that of pictures and no normalization is known for it.
        CheckpointError: weights are missing, corrupt, unsafe, not finite or of another model.
        ConfigError: class names or normalization do not fit the model.
    """
    made = make_model(config, trained=trained)
    # Files may hold other types.
    model = made.model.float().eval()
    check_finite_weights(config.checkpoint or config.name, model)
    data_config = timm.data.resolve_data_config({}, model=model)
    channels, height, width = input_size_of(model, data_config)
    mean = _per_channel(config, "mean", data_config["mean"], channels)
    std = _per_channel(config, "std", data_config["std"], channels)
    data_config |= {"input_size": (channels, height, width), "mean": mean, "std": std, **config.preprocessing()}
    # Settings of the config were checked when it was made; these are the model's own.
    if fault := describe_crop_fault({name: data_config[name] for name in PREPROCESSING}):
        raise ConfigError(f"model {config.name!r}: its own {fault}; use the setting of that name to override it")
    names, name_notices = class_names(config, model, trained=trained)
    assumed = () if made.preset else assumed_preprocessing(config, data_config)
    return LoadedModel(
        model=model,
        name=config.name,
        class_names=names,
        mean=mean,
        std=std,
        input_size=(channels, height, width),
        digest=weight_digest(model),
        data_config=data_config,
        notices=(*made.notices, *assumed, *name_notices),
        preset=made.preset,
    )


def assumed_preprocessing(config: ModelConfig, data_config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a notice if a user's own weights get the preprocessing that timm has for the model's name.

    A file of weights does not state how its model was shown images, and logits of images that are shown otherwise are
    wrong without a word. A folder states it, and so do weights that timm publishes.

    Args:
        config: settings of the model.
        data_config: preprocessing as timm resolved it; a setting that `config` gives has replaced timm's.
    """
    if config.checkpoint is None or config.name.startswith(LOCAL_DIR):
        return ()
    assumed = [name for name in ("mean", "std", *PREPROCESSING) if getattr(config, name) is None]
    if not assumed:
        return ()
    shown = ", ".join(f"{name} {_shown(data_config[name])}" for name in assumed)
    what = f"checkpoint {config.checkpoint!r} states no preprocessing"
    how = "where it was trained with another, set these beside checkpoint"
    return (f"{what}: that of timm's {config.name!r} is taken, {shown}; {how}",)


def _shown(value: Any) -> Any:
    # As a user writes it in a config.
    return list(value) if isinstance(value, tuple) else value


class RealImageTransform:
    """timm's evaluation transform as a model's data config describes it, for images of any size and mode."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._mode = "L" if loaded.input_size[0] == 1 else "RGB"
        self._transform: Callable[[Image.Image], Tensor] = timm.data.create_transform(  # type: ignore[assignment]
            **loaded.data_config, is_training=False
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the normalized image, float32 [C, H, W]."""
        return self._transform(image.convert(self._mode))


def _per_channel(config: ModelConfig, name: str, own: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return the mean or the standard deviation per channel: the given one, else the model's own."""
    given: list[float] | None = getattr(config, name)
    whose = name if given is not None else f"model {config.name!r}: its own {name}"
    if given is None and (fault := describe_normalization_fault({name: own})):
        raise ConfigError(f"model {config.name!r}: its own {fault}; set {name} to override it")
    values = tuple(float(v) for v in (own if given is None else given))
    if len(values) == channels:
        return values
    if channels not in PICTURE_CHANNELS:
        raise ModelError(describe_channels(config.name, channels))
    if given is None and channels == 1:
        # timm states three values even for a model that it made for one channel. A gray image takes their mean.
        return (sum(values) / len(values),)
    raise ConfigError(f"{whose} has {len(values)} values, the model reads {channels} channels: {list(values)}")
