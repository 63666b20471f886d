"""Channels of pictures: those that datasets hold, and models read."""

# Gray, or red, green and blue.
PICTURE_CHANNELS = (1, 3)


def describe_channels(name: str, channels: int) -> str:
    """Say that the number of a model's channels is not that of pictures."""
    return f"model {name!r} reads images of {channels} channels: datasets hold gray (1) or RGB (3) pictures"
