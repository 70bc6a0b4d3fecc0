"""One cell, one table: how numbers of runs are put into words, and tables shown, as CSV and as LaTeX."""

import html
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Self

import pandas as pd

from analysis.frame import style, view
from analysis.frame.output import output_folder
from skdcgn.files import atomic_path
from skdcgn.measure.statistics import mean_interval

READING = "Means over seeds with their 95 % Student-t interval and n, the number of seeds."
"""What a reader of cells must know."""

_SYMBOLS = str.maketrans(
    {
        "×": r"$\times$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "−": r"$-$",
        "±": r"$\pm$",
        "≤": r"$\leq$",
        "≥": r"$\geq$",
        "λ": r"$\lambda$",
        "²": r"$^2$",
        "–": "--",
        "…": r"\dots{}",
        "é": r"\'e",
    }
)
"""The few characters that LaTeX fonts may lack, spelled."""

_LATEX = {ord(character): f"\\{character}" for character in "&%$#_{}"} | _SYMBOLS
"""The same, and what LaTeX would not take for text."""

_NUMBERS = ("metric", "mean", "low", "high", "n", "text", "command")  # columns of every cell


class Quantity(NamedTuple):
    """What a cell shows, and how it is written."""

    title: str
    metric: str
    """Column of the runs."""
    form: str = ".3g"
    scale: float = 1.0
    """Factor on a value before it is written."""
    counted: bool = False
    """Whether it is counted rather than measured: one number, without an interval."""


def cell(
    shown: pd.DataFrame, quantity: Quantity, command: str = "", absent: str = "not measured", /, **place: str
) -> dict[str, object]:
    """Fill a cell from runs, or say what is missing.

    Args:
        shown: the runs, a row a seed.
        quantity: what to show of them.
        command: what makes the runs where there are none.
        absent: what the cell says where the runs have no value.
        place: columns of the table's cells, such as `mechanism` and `model`, with this cell's values; `quantity` is
            the quantity's title.
    """
    if shown.empty:
        return number([], quantity, "no finished run", **place) | {"command": command}
    return number(view.values(shown, quantity.metric), quantity, absent, **place)


def number(
    values: Sequence[float], quantity: Quantity, absent: str = "not measured", /, **place: str
) -> dict[str, object]:
    """Fill a cell from the values of several seeds, such as paired differences; see `cell`."""
    place = {"quantity": quantity.title, **place, "metric": quantity.metric}
    if not len(values):
        return words(absent, **place)
    interval = mean_interval(values)
    if quantity.counted:
        text = format(values[0] * quantity.scale, quantity.form)
    else:
        text = style.write_interval(interval, quantity.form, quantity.scale)
    return words(text, **place) | interval._asdict()


def words(text: str, mean: float | None = None, /, **place: str) -> dict[str, object]:
    """Fill a cell with what does not come from runs, such as a published number."""
    return {"metric": "", **place, "mean": mean, "low": None, "high": None, "n": 0, "text": text, "command": ""}


@dataclass(frozen=True)
class Listing:
    """A table of words, such as the claims, with its title and what a reader must know about it."""

    title: str
    cells: pd.DataFrame
    """The table itself; its index is not shown."""
    notes: tuple[str, ...] = ()
    markup: Mapping[str, Callable[[str], str]] = field(default_factory=dict)
    """Column to what makes HTML of a cell; others are shown as they are."""
    hidden: tuple[str, ...] = ()
    """Columns that are kept in the CSV file and not shown."""
    name: str = ""
    """That of its files, and of its place in the report."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return self.cells.empty

    @property
    def commands(self) -> list[str]:
        """The commands that fill the gaps, in the order in which the gaps are numbered."""
        return [command for command in self.cells.get("command", pd.Series(dtype=str)).unique() if command]

    @property
    def text(self) -> pd.DataFrame:
        """The table as people read it."""
        return self.cells.drop(columns=list(self.hidden))

    def save(self, name: str, folder: Path | None = None) -> Self:
        """Write `tables/<name>.csv` (every cell with its numbers in full) and `.tex`; return the table."""
        folder = (folder or output_folder()) / "tables"
        with atomic_path(folder / f"{name}.csv") as temporary:
            self.cells.to_csv(temporary, index=False, float_format="%.8g")
        with atomic_path(folder / f"{name}.tex") as temporary:
            temporary.write_text(self.to_latex(), encoding="utf-8")
        return replace(self, name=name)

    def to_latex(self) -> str:
        """Return the table as LaTeX with its title above and its notes below, for the packages that it names."""
        body = self._latex_body()
        packages = "booktabs, multirow" if "multirow" in body else "booktabs"
        gaps = [
            rf"[{number}] \texttt{{{command.translate(_LATEX).replace('--', '-{}-')}}}"
            for number, command in enumerate(self.commands, 1)
        ]
        notes = "\n\n".join([*(note.translate(_LATEX) for note in self.notes), *gaps])
        title = self.title.translate(_LATEX)
        return f"% packages: {packages}\n\\textbf{{{title}}}\n\n{body.translate(_SYMBOLS)}\n{notes}\n"

    def _latex_body(self) -> str:
        count = max(1, self.text.shape[1])
        columns = rf"p{{{0.95 / count:.2f}\linewidth}}" * count
        styler = self.text.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
        return styler.to_latex(hrules=True, column_format=columns)

    def to_markdown(self) -> str:
        """Return the table as Markdown."""
        rows = [list(self.text.columns), ["---"] * self.text.shape[1], *self.text.to_numpy().tolist()]
        return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |" for row in rows)

    def _repr_html_(self) -> str:
        """Show the table in a notebook, its title above and its notes below."""
        anchor = f' id="{self.name}"' if self.name else ""
        gaps = [
            f"[{number}] no finished run; this command makes it: <code>{html.escape(command)}</code>"
            for number, command in enumerate(self.commands, 1)
        ]
        items = "".join(f"<li>{note}</li>" for note in [*map(html.escape, self.notes), *gaps])
        below = f"<ul>{items}</ul>" if items else ""
        return f'<h4{anchor}>{html.escape(self.title)}</h4><div class="wide">{self._html_body()}</div>{below}'

    def _html_body(self) -> str:
        cells = self.text.astype(str)
        shown = pd.DataFrame({name: cells[name].map(self.markup.get(name, html.escape)) for name in cells})
        with pd.option_context("display.max_colwidth", None):
            return shown.to_html(index=False, escape=False, border=0, classes="listing")


@dataclass(frozen=True)
class Table(Listing):
    """A table of numbers: `cells` has a row for each cell, see `cell`."""

    index: tuple[str, ...] = ("mechanism", "quantity")
    """Columns of `cells` that tell the table's rows apart."""
    column: str = "model"
    """Column of `cells` that tells the table's columns apart."""

    @classmethod
    def of(
        cls,
        title: str,
        cells: Iterable[Mapping[str, object]],
        notes: Sequence[str] = (),
        index: Sequence[str] = ("mechanism", "quantity"),
        column: str = "model",
    ) -> "Table":
        """Make a table of cells, in the order of its rows and columns."""
        frame = pd.DataFrame(cells)
        places = [*index, column]
        others = [name for name in frame if name not in (*places, *_NUMBERS)]
        return cls(title, frame[[*places, *others, *_NUMBERS]], tuple(notes), index=tuple(index), column=column)

    @property
    def empty(self) -> bool:
        """Whether there is no number in it."""
        return not self.cells["n"].fillna(0).any()

    @property
    def text(self) -> pd.DataFrame:
        """The table as people read it, rows and columns in the order of the cells, gaps numbered by their commands."""
        numbers = {command: f" [{number}]" for number, command in enumerate(self.commands, 1)}
        numbered = self.cells["text"] + self.cells["command"].map(lambda command: numbers.get(command, ""))
        cells = self.cells.assign(text=numbered)
        wide = cells.pivot(index=list(self.index), columns=self.column, values="text").fillna("")
        rows = self.cells.set_index(list(self.index)).index.unique()
        return wide.loc[rows, list(self.cells[self.column].unique())].rename_axis(columns=None)

    def _latex_body(self) -> str:
        styler = self.text.style.format(escape="latex").format_index(escape="latex", axis=0)
        columns = "l" * len(self.index) + "r" * self.cells[self.column].nunique()
        clines = "skip-last;index" if len(self.index) > 1 else None
        return styler.to_latex(hrules=True, multirow_align="t", clines=clines, column_format=columns)

    def _html_body(self) -> str:
        uuid = f"{zlib.crc32(self.title.encode()):x}"  # two tables of one name would share their styles
        styler = self.text.style.map(_emphasis)
        return styler.to_html(table_uuid=uuid, table_attributes='class="results"', escape=True)


def _emphasis(text: str) -> str:
    """CSS of a cell: what is no number stands back."""
    stands_back = text.startswith(("no finished run", "not measured", "reference"))
    return "color: #777; font-style: italic" if stands_back else ""
