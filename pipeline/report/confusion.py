"""Which classes are taken for which: counts of (class, predicted class), as a section of a page."""

from collections import Counter
from collections.abc import Mapping, Sequence

from pipeline.report.heat import heat
from pipeline.report.page import Section, Table
from pipeline.report.strips import bars
from pipeline.report.text import shortened

# Label of an image, and the class that it was taken for → how many images.
Confusion = Mapping[tuple[int, int], int]
# Beyond so many classes the squares of a table are too small to read on a phone.
_MOST_CLASSES = 20
_MOST_PAIRS = 20
_MOST_BARS = 30


def confusion_section(heading: str, counts: Confusion, class_names: Sequence[str], *, text: str = "") -> Section:
    """Return a table of all classes where they are few; otherwise the most frequent mistakes, and the worst classes.

    Args:
        heading: heading of the section.
        counts: (label, predicted class) → number of images.
        class_names: names of labels 0, 1, 2, ...
        text: text before the counts.
    """
    right, total = count_right(counts)
    share = f"{right} of {total} images ({100 * right / max(1, total):.1f}%) are taken for their class."
    intro = f"{text} {share}".strip()
    seen = sorted({label for pair in counts for label in pair})
    if len(seen) <= _MOST_CLASSES:
        matrix = [[counts.get((label, taken), 0) for taken in seen] for label in seen]
        plot = heat(matrix, [_name(class_names, label) for label in seen], rows="class", columns="taken for")
        return Section(heading=heading, text=intro, plots=[("images; shaded by their share of the class", plot)])
    worst = _worst(counts, class_names)
    caption = f"% of the images of a class that are taken for it: the {len(worst)} lowest of {len(seen)} classes"
    plots = [(caption, bars(worst, x_label="%", x_range=(0, 100)))]
    return Section(heading=heading, text=intro, tables=_mistakes(counts, class_names), plots=plots)


def count_right(counts: Confusion) -> tuple[int, int]:
    """Return how many images are taken for their class, and how many there are."""
    return sum(count for (label, taken), count in counts.items() if label == taken), sum(counts.values())


def _worst(counts: Confusion, class_names: Sequence[str]) -> dict[str, float | None]:
    """Return name → percent right, of the classes with the least, the worst first."""
    totals: Counter[int] = Counter()
    for (label, _), count in counts.items():
        totals[label] += count
    right = {label: 100 * counts.get((label, label), 0) / total for label, total in totals.items()}
    worst = sorted(right, key=lambda label: (right[label], label))[:_MOST_BARS]
    return {f"{label} {_name(class_names, label)}": right[label] for label in worst}


def _mistakes(counts: Confusion, class_names: Sequence[str]) -> list[Table]:
    wrong = [(count, label, taken) for (label, taken), count in counts.items() if label != taken]
    wrong.sort(key=lambda row: (-row[0], row[1:]))
    rows = [[_name(class_names, label), _name(class_names, taken), count] for count, label, taken in wrong]
    if not rows:
        return []
    header = ["class", "taken for", f"images (the {min(len(rows), _MOST_PAIRS)} largest of {len(rows)})"]
    return [Table(header=header, rows=rows[:_MOST_PAIRS])]


def _name(class_names: Sequence[str], label: int) -> str:
    return shortened(class_names[label]) if 0 <= label < len(class_names) else str(label)
