"""One look for every figure: fonts, colors that color-blind readers can tell apart, image sheets, gaps, and saving."""

import base64
import html
import io
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import seaborn
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from analysis.frame.output import output_folder
from skdcgn.files import atomic_path
from skdcgn.images import PADDING, grid
from skdcgn.measure.statistics import Interval, mean_interval

PALETTE = seaborn.color_palette("colorblind")

_STYLE = {
    **seaborn.axes_style("whitegrid"),
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "pdf.fonttype": 42,  # text stays text
}

_WIDTH = 10.0  # inches

_LEFT, _RIGHT = 1.05, 0.1  # margins of an image sheet: row names stand in the left one, which long ones widen

_LETTER = 0.085  # a letter of a row name

_LINE = 0.19  # a line of caption

_HEADER = 0.25  # a line of header above the images

COLUMNS = 10
"""Images in a row of a sheet: one for each digit."""

_GRAY = "0.35"

_GAP = "gap"

FEW = 6
"""Run ids that a reader can take in at a glance."""


class Block(NamedTuple):
    """Rows of images that belong together, with lines of text above their columns."""

    rows: Mapping[str, Tensor]
    """Row name to images (N, 1 or 3, H, W) in [-1, 1]."""
    header: Mapping[str, Sequence[object]]
    """Name of the line to one entry for each of the N columns."""


@contextmanager
def style() -> Iterator[None]:
    """Draw inside this block in the one style."""
    with matplotlib.rc_context(_STYLE):
        yield


def sheet(blocks: Sequence[Block], title: str, caption: str) -> Figure:
    """Draw blocks of images below each other: pixels as they are, no axes."""
    columns = max(len(images) for block in blocks for images in block.rows.values())
    left = max([_LEFT, *(0.1 + _LETTER * len(name) for block in blocks for name in (*block.rows, *block.header))])
    across = _WIDTH - left - _RIGHT
    pictures = [grid(list(block.rows.values())) for block in blocks]
    pitch = [next(iter(block.rows.values())).shape[-1] + PADDING for block in blocks]
    # Inches of one pixel in each block, such that the widest row fills the width.
    inches = [across / (columns * step + PADDING) for step in pitch]
    headers = sum(_HEADER * len(block.header) for block in blocks)
    heights = sum(picture.shape[0] * size for picture, size in zip(pictures, inches, strict=True))
    with style():
        figure, top, _ = _page(heights + headers + 0.15 * (len(blocks) - 1), title, caption)
        total = figure.get_figheight()
        for block, picture, step, size in zip(blocks, pictures, pitch, inches, strict=True):
            height, width = picture.shape[0] * size, picture.shape[1] * size
            top -= _HEADER * len(block.header) + height
            axes = figure.add_axes((left / _WIDTH, top / total, width / _WIDTH, height / total))
            axes.imshow(picture, interpolation="nearest", aspect="auto")
            axes.set_axis_off()
            for row, name in enumerate(block.rows):
                axes.text(-PADDING - 1, PADDING + (row + 0.5) * step, name, ha="right", va="center")
            for line, (name, entries) in enumerate(reversed(block.header.items())):
                y = -(line + 0.5) * _HEADER / size
                axes.text(-PADDING - 1, y, name, ha="right", va="center", color=_GRAY)
                for column, entry in enumerate(entries):
                    axes.text(PADDING / 2 + (column + 0.5) * step, y, str(entry), ha="center", va="center")
            top -= 0.15
    return figure


def blocks(
    rows: Mapping[str, Tensor], header: Mapping[str, Tensor], columns: int = COLUMNS, limit: int | None = None
) -> list[Block]:
    """Break rows of images, and the entries above them, into blocks.

    Args:
        rows: row name to images (N, 1 or 3, H, W) in [-1, 1].
        header: name of a line to one entry for each of the N images.
        columns: of a block.
        limit: how many of the N images to show; by default all.
    """
    count = len(next(iter(rows.values())))
    return [
        Block(
            {name: images[start : start + columns] for name, images in rows.items()},
            {name: entries[start : start + columns].tolist() for name, entries in header.items()},
        )
        for start in range(0, min(limit or count, count), columns)
    ]


def intervals(
    axes: Axes, positions: Iterable[float], samples: Iterable[Sequence[float]], scale: float = 1.0, **look: object
) -> None:
    """Draw means of samples with their 95 % intervals: no bar where a sample is one value, nothing where it is empty.

    Args:
        axes: to draw on.
        positions: x of each sample.
        samples: values over seeds.
        scale: factor on them.
        look: arguments of `Axes.errorbar`.
    """
    found = [(x, mean_interval(sample)) for x, sample in zip(positions, samples, strict=True) if len(sample)]
    if found:
        means, low, high = (np.array([scale * interval[part] for _, interval in found]) for part in range(3))
        errors = np.nan_to_num([means - low, high - means])
        axes.errorbar([x for x, _ in found], means, errors, **{"fmt": "o", "markersize": 5, "capsize": 3, **look})


def plots(count: int, title: str, caption: str, right: float = 0.2) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` plots side by side, and `right` inches for a legend beside the last."""
    with style():
        figure, top, bottom = _page(3.1, title, caption)
        total, between, left = figure.get_figheight(), 0.75, 0.9
        places = {"left": left / _WIDTH, "right": 1 - right / _WIDTH}
        places |= {"bottom": (bottom + 0.5) / total, "top": (top - 0.3) / total}
        places["wspace"] = between * count / (_WIDTH - left - right - between * (count - 1))
        return figure, list(figure.subplots(1, count, squeeze=False, gridspec_kw=places)[0])


def gap(title: str, command: str, missing: str = "No finished run in the store.") -> Figure:
    """Draw the place of a figure that has no run yet, with the command that makes it."""
    with style():
        figure, top, bottom = _page(1.5, title, "")
        total = figure.get_figheight()
        axes = figure.add_axes((0.02, bottom / total, 0.96, (top - bottom) / total))
        axes.set(xticks=[], yticks=[], facecolor="0.97")
        for spine in axes.spines.values():
            spine.set(visible=True, linestyle=(0, (5, 4)), color=_GRAY)
        axes.text(0.5, 0.68, f"{missing} This command makes it:", ha="center", va="center", color=_GRAY)
        axes.text(0.5, 0.36, command, ha="center", va="center", family="monospace", size=11)
    figure.set_gid(_GAP)
    return figure


def cite(figure: Figure, run_ids: Iterable[str]) -> Figure:
    """Note which runs a figure was drawn from; `show` puts them below it."""
    figure.set_gid(" ".join(dict.fromkeys(run_ids)))
    return figure


def cited(figure: Figure) -> list[str]:
    """Return the ids of the runs that a figure was drawn from, as far as they were noted."""
    return [] if is_gap(figure) else (figure.get_gid() or "").split()


def is_gap(figure: Figure) -> bool:
    """Whether a figure is the place of one that has no run yet."""
    return figure.get_gid() == _GAP


def _page(height: float, title: str, caption: str) -> tuple[Figure, float, float]:
    """Return a figure around `height` inches of content, and the content's top and bottom in inches."""
    titles, lines = textwrap.wrap(title, 95), textwrap.wrap(caption, 155)
    below = 0.12 + _LINE * len(lines)
    above = 0.14 + 0.24 * len(titles)
    figure = Figure(figsize=(_WIDTH, height + above + below))
    total = figure.get_figheight()
    figure.text(0.01, 1 - 0.06 / total, "\n".join(titles), ha="left", va="top", size=12, weight="bold")
    figure.text(0.01, 0.05 / total, "\n".join(lines), ha="left", va="bottom", size=8.5, color=_GRAY)
    return figure, total - above, below


def write_interval(interval: Interval, form: str = ".3g", scale: float = 1.0) -> str:
    """Write a mean over seeds with its 95 % Student-t interval and n; the value alone where n = 1."""
    mean, low, high = (format(value * scale, form) for value in interval[:3])
    return f"{mean}, n=1" if interval.n == 1 else f"{mean} [{low}, {high}], n={interval.n}"


def save(figure: Figure, name: str, folder: Path | None = None) -> Path:
    """Write a figure as `figures/<name>.png` (150 dpi) and `.pdf`; return the PNG's path."""
    folder = (folder or output_folder()) / "figures"
    with style():
        for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
            with atomic_path(folder / f"{name}.{suffix}") as temporary:
                figure.savefig(temporary, format=suffix, metadata=metadata)
    return folder / f"{name}.png"


def save_small(figure: Figure, path: Path, limit: int = 150_000) -> None:
    """Write a figure as a PNG of few colors, fewer where it would take more than `limit` bytes."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    picture = Image.open(buffer).convert("RGB")
    for colors in (256, 128, 64, 32):
        encoded = io.BytesIO()
        picture.quantize(colors, dither=Image.Dither.NONE).save(encoded, format="png", optimize=True)
        if encoded.tell() <= limit:
            break
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded.getvalue())


def show(figures: Mapping[str, Figure]) -> HTML:
    """Save figures by name, and return them for a notebook to display, each with the runs it was drawn from."""
    return HTML("\n".join(_shown(figure, name) for name, figure in figures.items()))


def _shown(figure: Figure, name: str) -> str:
    picture = base64.b64encode(save(figure, name).read_bytes()).decode()
    title = html.escape(" ".join(figure.texts[0].get_text().split()))
    return (
        f'<figure id="{name}"><img src="data:image/png;base64,{picture}" alt="{title}">'
        f"<figcaption>{_runs_line(cited(figure))}</figcaption></figure>"
    )


def _runs_line(run_ids: Sequence[str]) -> str:
    """Name runs, folded where they are many."""
    if not run_ids:
        return ""
    names = " ".join(f"<code>{run_id[:8]}</code>" for run_id in run_ids)
    if len(run_ids) <= FEW:
        return f"run{'s' if len(run_ids) > 1 else ''} {names}"
    return f"<details><summary>{len(run_ids)} runs</summary>{names}</details>"
