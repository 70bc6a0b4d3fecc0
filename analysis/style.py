"""One look for every figure: fonts, colour-blind-safe colours, image sheets, visible gaps, and saving."""

import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib
import seaborn
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from skdcgn.images import grid
from skdcgn.runtime import atomic_path

PALETTE = seaborn.color_palette("colorblind")

OUTPUT_VARIABLE = "SKDCGN_ANALYSIS_OUTPUT"
"""Environment variable that names the folder for figures and tables; `render` sets it for the notebooks."""

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
_LEFT, _RIGHT = 1.05, 0.1  # margins of an image sheet: row names stand in the left one
_LINE = 0.19  # a line of caption
_HEADER = 0.25  # a line of header above the images
_PADDING = 2  # pixels around every image, as `images.grid` lays them out
_GREY = "0.35"


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
    across = _WIDTH - _LEFT - _RIGHT
    pictures = [grid(list(block.rows.values())) for block in blocks]
    pitch = [next(iter(block.rows.values())).shape[-1] + _PADDING for block in blocks]
    # Inches of one pixel in each block, such that the widest row fills the width.
    inches = [across / (columns * step + _PADDING) for step in pitch]
    heights = [picture.shape[0] * size for picture, size in zip(pictures, inches, strict=True)]
    headers = [_HEADER * len(block.header) for block in blocks]
    with style():
        figure, top, _ = _page(sum(heights) + sum(headers) + 0.15 * (len(blocks) - 1), title, caption)
        total = figure.get_figheight()
        for block, picture, step, size, height, header in zip(
            blocks, pictures, pitch, inches, heights, headers, strict=True
        ):
            top -= header + height
            width = picture.shape[1] * size
            axes = figure.add_axes((_LEFT / _WIDTH, top / total, width / _WIDTH, height / total))
            axes.imshow(picture, interpolation="nearest", aspect="auto")
            axes.set_axis_off()
            for row, name in enumerate(block.rows):
                axes.text(-_PADDING - 1, _PADDING + (row + 0.5) * step, name, ha="right", va="center")
            for line, (name, entries) in enumerate(reversed(block.header.items())):
                y = -(line + 0.5) * _HEADER / size
                axes.text(-_PADDING - 1, y, name, ha="right", va="center", color=_GREY)
                for column, entry in enumerate(entries):
                    axes.text(_PADDING / 2 + (column + 0.5) * step, y, str(entry), ha="center", va="center")
            top -= 0.15
    return figure


def plots(count: int, title: str, caption: str, right: float = 0.2) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` plots side by side, and `right` inches for a legend beside the last."""
    with style():
        figure, top, bottom = _page(3.1, title, caption)
        total, gap, left = figure.get_figheight(), 0.75, 0.75
        width = (_WIDTH - left - right - gap * (count - 1)) / count
        return figure, [
            figure.add_axes(
                (
                    (left + index * (width + gap)) / _WIDTH,
                    (bottom + 0.5) / total,
                    width / _WIDTH,
                    (top - bottom - 0.8) / total,
                )
            )
            for index in range(count)
        ]


def gap(title: str, command: str, missing: str = "No finished run in the store.") -> Figure:
    """Draw the place of a figure that has no run yet, with the command that makes it."""
    with style():
        figure, top, bottom = _page(1.5, title, "")
        total = figure.get_figheight()
        axes = figure.add_axes((0.02, bottom / total, 0.96, (top - bottom) / total))
        axes.set(xticks=[], yticks=[], facecolor="0.97")
        for spine in axes.spines.values():
            spine.set(visible=True, linestyle=(0, (5, 4)), color=_GREY)
        axes.text(0.5, 0.68, f"{missing} This command makes it:", ha="center", va="center", color=_GREY)
        axes.text(0.5, 0.36, command, ha="center", va="center", family="monospace", size=11)
    return figure


def _page(height: float, title: str, caption: str) -> tuple[Figure, float, float]:
    """Return a figure around `height` inches of content, and the content's top and bottom in inches."""
    titles, lines = textwrap.wrap(title, 95), textwrap.wrap(caption, 155)
    below = 0.12 + _LINE * len(lines)
    above = 0.14 + 0.24 * len(titles)
    figure = Figure(figsize=(_WIDTH, height + above + below))
    total = figure.get_figheight()
    figure.text(0.01, 1 - 0.06 / total, "\n".join(titles), ha="left", va="top", size=12, weight="bold")
    figure.text(0.01, 0.05 / total, "\n".join(lines), ha="left", va="bottom", size=8.5, color=_GREY)
    return figure, total - above, below


def output_folder() -> Path:
    """Return the folder that figures and tables are written to."""
    return Path(os.environ.get(OUTPUT_VARIABLE) or Path(__file__).parent / "output")


def save(figure: Figure, name: str, folder: Path | None = None) -> Path:
    """Write a figure as `figures/<name>.png` (150 dpi) and `.pdf`; return the PNG's path."""
    folder = (folder or output_folder()) / "figures"
    with style():
        for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
            with atomic_path(folder / f"{name}.{suffix}") as temporary:
                figure.savefig(temporary, format=suffix, metadata=metadata)
    return folder / f"{name}.png"


def show(figure: Figure, name: str) -> Image:
    """Save a figure and return it for a notebook to display."""
    return Image(data=save(figure, name).read_bytes(), format="png", alt=name.replace("_", " "))
