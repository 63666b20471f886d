"""Write the page and the figure of `benchmarks/hallucination.py`."""

import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from benchmarks.markdown import table

BASE = "dense"  # which keeps every patch
BACKGROUNDS = ("matching", "swapped")
_COLORS = {"matching": "#4477aa", "swapped": "#ee8866"}
# What is compared, seed by seed: the first minus the second.
_STUDENTS_COMPARED = [
    ("sparse", "dense"),
    ("rebirth", "dense"),
    ("rebirth", "sparse"),
    ("rebirth", "random patches"),
    ("sparse", "random patches"),
    ("sparse by attention received", "sparse"),
    ("sparse by gradient × activation", "sparse"),
    ("real", "dense"),
]

ByName = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The figures of one seed.

    Attributes:
        foreground: by choice of patches, then backgrounds: percent of the kept area that is foreground.
        top1: by model, then backgrounds: percent of the held-out images.
        seconds: by kind of inversion, for the whole set.
        pictures: by what they show, an image uint8 [H, W, 3] of each class.
    """

    foreground: dict[str, dict[str, float]]
    top1: dict[str, dict[str, float]]
    seconds: dict[str, float]
    pictures: dict[str, list[np.ndarray]]


def page(trials: Sequence[Trial], facts: Mapping[str, Any]) -> str:
    """The results as Markdown.

    Args:
        trials: one a seed.
        facts: what they were measured on, by name.
    """
    foreground, top1 = [trial.foreground for trial in trials], [trial.top1 for trial in trials]
    sections = [
        "# Does sparsity keep spurious backgrounds out?",
        _ABOUT,
        "![Examples and figures](hallucination.png)",
        "## Which patches of real images are kept",
        _ABOUT_FOREGROUND,
        _table("patches kept", foreground),
        _differences([(choice, BASE) for choice in foreground[0] if choice != BASE], foreground),
        "## Accuracy when backgrounds are swapped",
        _ABOUT_TOP1,
        _table("top-1 of", top1, gap=True),
        _differences(_compared(top1[0]), top1),
        "## Seconds to make a set",
        table(
            ["inversion", "seconds"], [[name, _mean([t.seconds[name] for t in trials])] for name in trials[0].seconds]
        ),
        "## Measured on",
        "\n".join(f"- {name}: {_code(value)}" for name, value in facts.items()),
    ]
    return "\n\n".join(sections) + "\n"


_ABOUT = """\
Made by `benchmarks/hallucination.py`; every figure is a mean ± standard deviation over the seeds, each with a
dataset, a teacher, inversions and students of its own. The teacher learned colored shapes on textures that
mostly go with the class (`matching` in the settings below). Matching: new images on their own class's texture.
Swapped: new images on another class's."""
_ABOUT_FOREGROUND = """\
Percent of the kept patches' area that lies on the shape, over all held-out images. Their patches are chosen as
each kind of inversion chooses among those of its own images, with the same schedule. Dense inversion keeps all:
the base rate. Rebirth's images together are all patches as well. Sparse and rebirth rank by the CLS
token's attention."""
_ABOUT_TOP1 = """\
Percent of the held-out images. Students are the teacher's first and last block, distilled on as many images of
each kind; they have the teacher's weights, and what these know of backgrounds, before they learn. Sparse images
are read at their kept patches alone, held-out images whole. Real: as many of the teacher's own training images."""


def _compared(top1: ByName) -> list[tuple[str, str]]:
    pairs = [(f"student on {first}", f"student on {second}") for first, second in _STUDENTS_COMPARED]
    return [pair for pair in pairs if pair[0] in top1 and pair[1] in top1]


def _table(header: str, trials: Sequence[ByName], *, gap: bool = False) -> str:
    """A row for each name, a column for either kind of backgrounds and, if asked for, what swapping them loses."""
    rows = []
    for name in trials[0]:
        row = [name, *(_mean([trial[name][backgrounds] for trial in trials]) for backgrounds in BACKGROUNDS)]
        if gap:
            row.append(_mean([trial[name]["matching"] - trial[name]["swapped"] for trial in trials]))
        rows.append(row)
    return table([header, *BACKGROUNDS, *(["lost by swapping"] if gap else [])], rows)


def _differences(pairs: Sequence[tuple[str, str]], trials: Sequence[ByName]) -> str:
    """First minus second of each pair, within seeds, and in how many of them it is above zero."""
    rows = []
    for first, second in pairs:
        row = [f"{first} − {second}"]
        for backgrounds in BACKGROUNDS:
            values = [trial[first][backgrounds] - trial[second][backgrounds] for trial in trials]
            row += [_mean(values, sign=True), f"{sum(value > 0 for value in values)} of {len(values)}"]
        rows.append(row)
    return table(["difference in a seed", "matching", "seeds above 0", "swapped", "seeds above 0"], rows)


def _mean(values: Sequence[float], *, sign: bool = False) -> str:
    """Mean ± sample standard deviation, the latter where there are two values or more."""
    mean = f"{statistics.fmean(values):{'+' if sign else ''}.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def _code(value: object) -> str:
    return f"`{value}`"


def draw(trials: Sequence[Trial]) -> bytes:
    """Examples of the first seed beside bars of all, as the bytes of a PNG file."""
    figure = Figure(figsize=(15, 9), dpi=110, layout="constrained")
    left, right = (figure.add_subfigure(cell) for cell in figure.add_gridspec(1, 2, width_ratios=[1.1, 1]))
    _draw_pictures(left, trials[0].pictures)
    above, below = right.subplots(2, 1)
    _draw_bars(above, [trial.foreground for trial in trials], "kept area on the shape (%)")
    _draw_bars(below, [trial.top1 for trial in trials], "top-1 on held-out images (%)")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_pictures(figure: SubFigure, pictures: Mapping[str, Sequence[np.ndarray]]) -> None:
    """A row of images for each name, side by side with a gap."""
    for number, (name, images) in enumerate(pictures.items(), 1):
        axes = figure.add_subplot(len(pictures), 1, number)
        framed = [np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=128) for image in images]
        spaced = [np.pad(image, ((0, 0), (0, 4), (0, 0)), constant_values=255) for image in framed]
        axes.imshow(np.concatenate(spaced, axis=1), interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        # A label, which the layout makes room for; a text it would cut off.
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)


def _draw_bars(axes: Axes, trials: Sequence[ByName], label: str) -> None:
    """Means of matching and swapped backgrounds for each name, with the seeds as dots."""
    names = list(trials[0])
    for offset, backgrounds in zip((0.2, -0.2), BACKGROUNDS, strict=True):
        heights = np.arange(len(names))[::-1] + offset
        values = np.array([[trial[name][backgrounds] for trial in trials] for name in names])
        axes.barh(
            heights, values.mean(axis=1), height=0.38, color=_COLORS[backgrounds], label=f"{backgrounds} backgrounds"
        )
        axes.plot(values, np.repeat(heights[:, None], len(trials), axis=1), "k.", markersize=3)
    axes.set_yticks(np.arange(len(names))[::-1], names)
    axes.set(xlabel=label)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
