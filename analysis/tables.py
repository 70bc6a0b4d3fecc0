"""Tables from the run store: as a DataFrame, as CSV and as LaTeX."""

import html
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from analysis import runs
from analysis.style import output_folder
from skdcgn import metrics
from skdcgn.mechanisms import Mechanism
from skdcgn.models.tinygan import PUBLISHED_MNIST, TinyGANGenerator
from skdcgn.runtime import atomic_path
from skdcgn.tracking import Store

MODELS = ("teacher", "paper's student", "ours")


class _Quantity(NamedTuple):
    """A row of the compression table."""

    title: str
    key: str
    teacher_key: str | None
    """Metric of the teacher's value; None where the teacher is what the student is measured against."""
    form: str
    """How a value is written."""
    scale: float = 1.0
    """Factor on a value before it is written."""


_QUANTITIES = (
    _Quantity("parameters", "final/parameters", "final/teacher_parameters", ",.0f"),
    _Quantity("MACs of one image (millions)", "final/macs", "final/teacher_macs", ".2f", 1e-6),
    _Quantity("latency, batch of 1 (ms)", "cost/latency_ms_batch_1", "cost/teacher_latency_ms_batch_1", ".2f"),
    _Quantity("latency, batch of 64 (ms)", "cost/latency_ms_batch_64", "cost/teacher_latency_ms_batch_64", ".1f"),
    _Quantity("mask IoU ↑", "final/iou", None, ".3f"),
    _Quantity("L1 ↓", "final/l1", None, ".3f"),
    _Quantity("SSIM ↑", "final/ssim", None, ".3f"),
    _Quantity("Fréchet distance ↓", "final/frechet", None, ".2f"),
)


_READING = (
    "Measured values are means over seeds with their 95 % Student-t interval and n, the number of seeds. Fidelity is "
    "that to the teacher on held-out noise; L1 is taken in the image range [-1, 1]. The teacher's latency was measured "
    "in the runs of our students. Parameters and MACs of the paper's student are those of its published architecture. "
    "Fréchet distances are taken on features of this project's own digit classifier: comparable with each other only."
)


@dataclass(frozen=True)
class Table:
    """A table with its title, its numbers and what a reader must know about them."""

    title: str
    cells: pd.DataFrame
    """One row a cell: mechanism, metric, quantity, model, mean, low, high (95 % interval), n, a gap's command, text."""
    notes: tuple[str, ...]
    """Where the numbers come from."""

    @property
    def commands(self) -> list[str]:
        """The commands that fill the gaps, in the order in which the gaps are numbered."""
        return [command for command in self.cells["command"].unique() if command]

    @property
    def text(self) -> pd.DataFrame:
        """The table as people read it: a row for each mechanism and quantity, a column for each model."""
        cells = self.cells
        quantities = list(dict.fromkeys(cells["quantity"]))
        wide = cells.pivot(index=["mechanism", "quantity"], columns="model", values="text")
        order = [(m.value, q) for m in Mechanism for q in quantities if (m.value, q) in wide.index]
        return wide.loc[order, list(MODELS)].rename_axis(columns=None)

    def to_latex(self) -> str:
        """Return the table as LaTeX, for the packages booktabs and multirow."""
        styler = self.text.style.format(escape="latex").format_index(escape="latex", axis=0)
        body = styler.to_latex(hrules=True, multirow_align="t", clines="skip-last;index", column_format="llrrr")
        notes = [_latex(note) for note in self.notes]
        gaps = [
            rf"[{number}] \texttt{{{_latex(command).replace('--', '-{}-')}}}"
            for number, command in enumerate(self.commands, 1)
        ]
        lines = "\n\n".join([*notes, *gaps])
        return f"% packages: booktabs, multirow\n\\textbf{{{_latex(self.title)}}}\n\n{_symbols(body)}\n{lines}\n"

    def save(self, name: str, folder: Path | None = None) -> None:
        """Write `tables/<name>.csv` (every cell with its numbers in full) and `.tex`."""
        folder = (folder or output_folder()) / "tables"
        with atomic_path(folder / f"{name}.csv") as temporary:
            self.cells.to_csv(temporary, index=False)
        with atomic_path(folder / f"{name}.tex") as temporary:
            temporary.write_text(self.to_latex(), encoding="utf-8")

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""
        styler = self.text.style.map(_emphasis)
        notes = [f"<li>{html.escape(note)}</li>" for note in self.notes]
        notes += [
            f"<li>[{number}] no finished run; this command makes it: <code>{html.escape(command)}</code></li>"
            for number, command in enumerate(self.commands, 1)
        ]
        table = styler.to_html(table_uuid="table", table_attributes='class="results"', escape=True)
        return f"<h4>{html.escape(self.title)}</h4>{table}<ul>{''.join(notes)}</ul>"


def compression(store: Store, dataset: str = "double_colored", profile: str | None = None) -> Table:
    """Compare size, speed and fidelity of the teacher's mechanisms, the paper's students and ours.

    Fidelity is measured against the teacher on held-out noise. A student of the paper is one of the published
    architecture trained with the profile `paper`; its size is known without a run.

    Args:
        store: the run store.
        dataset: whose teacher.
        profile: of our students; by default the widest one that has runs, `paper` aside.
    """
    finished = runs.finished_runs(store, runs.MNIST_KD)
    cells, notes, stand_ins = [], [], []
    for mechanism in Mechanism:
        theirs = runs.latest(finished, dataset, mechanism, "paper")
        if not theirs.empty:  # runs of one setting, so of one size: any other one is no student of the paper's
            theirs = theirs[theirs["final/parameters"] == published_size()["final/parameters"]]
        ours = runs.latest(
            finished if profile else finished[finished["profile"] != "paper"], dataset, mechanism, profile
        )
        chosen = {"teacher": theirs if ours.empty else ours, "paper's student": theirs, "ours": ours}
        own_command = runs.command("mnist_kd", dataset, mechanism, profile)
        published_command = runs.command("mnist_kd", dataset, mechanism, "paper")
        commands = {"teacher": own_command, "paper's student": published_command, "ours": own_command}
        for quantity in _QUANTITIES:
            if quantity.key == "final/iou" and mechanism is not Mechanism.SHAPE:
                continue
            for model in MODELS:
                cell = _cell(quantity, model, chosen[model], commands[model])
                place = {
                    "mechanism": mechanism.value,
                    "metric": quantity.key,
                    "quantity": quantity.title,
                    "model": model,
                }
                cells.append(place | cell)
        for model in ("ours", "paper's student"):
            if not chosen[model].empty:
                notes.append(_origin(mechanism, model, chosen[model]))
                stand_ins.append(runs.stand_in_note(chosen[model].iloc[0]))
    table = pd.DataFrame(cells)
    _compare_sizes(table)
    _number_gaps(table)
    remarks = [note for note in dict.fromkeys(stand_ins) if note]
    title = f"Compression of the CGN's mechanisms, {runs.dataset_title(dataset)}"
    title += f" ({'; '.join(remarks)})" if remarks else ""
    return Table(title, table, (_READING, *notes))


@cache
def published_size() -> dict[str, int]:
    """Return parameters and MACs of the published MNIST student: facts about its architecture, no run needed."""
    with torch.device("meta"):  # shapes without numbers
        student = TinyGANGenerator(PUBLISHED_MNIST).eval()
        noise = torch.empty(1, PUBLISHED_MNIST.noise_dim)
        labels = torch.zeros(1, dtype=torch.long)
        return {
            "final/parameters": metrics.parameters(student),
            "final/macs": metrics.macs(lambda: student(noise, labels)),
        }


def _cell(quantity: _Quantity, model: str, chosen: pd.DataFrame, command: str) -> dict[str, object]:
    """Fill one cell from the runs chosen for it, or say what is missing."""
    key = quantity.teacher_key if model == "teacher" else quantity.key
    empty = {"mean": None, "low": None, "high": None, "n": 0, "command": ""}
    if key is None:
        return empty | {"text": "reference"}
    if model == "paper's student" and key in published_size():
        size = published_size()[key]
        return empty | {"mean": float(size), "text": format(size * quantity.scale, quantity.form)}
    if chosen.empty:
        return empty | {"text": "no finished run", "command": command}
    values = chosen[key].dropna().tolist() if key in chosen else []
    if not values:
        return empty | {"text": "not measured"}
    interval = metrics.mean_interval(values)
    return interval._asdict() | {"text": _text(quantity, interval), "command": ""}


def _text(quantity: _Quantity, interval: metrics.Interval) -> str:
    """Write a mean, with its interval and n where it was measured rather than counted."""
    mean, low, high = (format(value * quantity.scale, quantity.form) for value in interval[:3])
    if quantity.key in published_size():
        return mean
    return f"{mean}, n={interval.n}" if interval.n == 1 else f"{mean} [{low}, {high}], n={interval.n}"


def _compare_sizes(cells: pd.DataFrame) -> None:
    """Add to parameters and MACs of the students how they stand to the teacher's."""
    for _, rows in cells[cells["metric"].isin(published_size())].groupby(["mechanism", "metric"]):
        teacher = rows.loc[rows["model"] == "teacher", "mean"].item()
        if pd.isna(teacher):
            continue
        for index, row in rows[(rows["model"] != "teacher") & rows["mean"].notna()].iterrows():
            larger = row["mean"] > teacher
            ratio = row["mean"] / teacher if larger else teacher / row["mean"]
            cells.loc[index, "text"] += f" ({ratio:.1f}× {'larger' if larger else 'smaller'})"


def _number_gaps(cells: pd.DataFrame) -> None:
    """Number the gaps by the commands that fill them."""
    numbers = {command: number for number, command in enumerate(filter(None, cells["command"].unique()), 1)}
    missing = cells["command"] != ""
    cells.loc[missing, "text"] += " [" + cells.loc[missing, "command"].map(numbers).astype(str) + "]"


def _origin(mechanism: Mechanism, model: str, chosen: pd.DataFrame) -> str:
    """Where the numbers of a mechanism and model come from."""
    first = chosen.iloc[0]
    seeds = f"seed{'s' if len(chosen) > 1 else ''} {', '.join(map(str, chosen['seed']))}"
    run_ids = ", ".join(chosen["run_id"].str[:8])
    hardware = " and ".join(dict.fromkeys(chosen["hardware"]))
    return (
        f"{mechanism.capitalize()}, {model}: profile {first['profile']}, {runs.steps(first):,} steps, {seeds} "
        f"(runs {run_ids}); teacher: {first['teacher']}; on {hardware}."
    )


def _emphasis(text: str) -> str:
    """CSS of a cell: what is no number stands back."""
    return (
        "color: #777; font-style: italic" if text.startswith(("no finished run", "not measured", "reference")) else ""
    )


def _latex(text: str) -> str:
    """Escape plain text for LaTeX."""
    for character in "&%$#_{}":
        text = text.replace(character, f"\\{character}")
    return _symbols(text)


def _symbols(text: str) -> str:
    """Spell the few characters that LaTeX fonts may lack."""
    for character, command in {"×": r"$\times$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "é": r"\'e"}.items():
        text = text.replace(character, command)
    return text
