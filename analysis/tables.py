"""Tables from the run store: as a DataFrame, as CSV and as LaTeX."""

import html
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from analysis import ablations, runs, sweeps
from analysis.style import interval_text, output_folder, write_interval
from skdcgn import metrics
from skdcgn.mechanisms import Mechanism
from skdcgn.models.tinygan import PUBLISHED_MNIST, TinyGANGenerator
from skdcgn.runtime import atomic_path
from skdcgn.tracking import Store


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


_GAIN = "KL of the paper − no KL"

_SYMBOLS = {
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


@dataclass(frozen=True)
class Table:
    """A table of numbers with its title and what a reader must know about them."""

    title: str
    cells: pd.DataFrame
    """One row a cell: what tells rows and columns apart, mean, low, high (95 % interval), n, a gap's command, text."""
    notes: tuple[str, ...]
    """Where the numbers come from."""
    index: tuple[str, ...] = ("mechanism", "quantity")
    """Columns of `cells` that tell the table's rows apart."""
    column: str = "model"
    """Column of `cells` that tells the table's columns apart."""
    name: str = ""
    """That of its files, and of its place in the report."""

    @property
    def empty(self) -> bool:
        """Whether there is no number in it."""
        return not self.cells["n"].fillna(0).any()

    @property
    def commands(self) -> list[str]:
        """The commands that fill the gaps, in the order in which the gaps are numbered."""
        return [command for command in self.cells["command"].unique() if command]

    @property
    def text(self) -> pd.DataFrame:
        """The table as people read it, rows and columns in the order of the cells, gaps numbered by their commands."""
        numbers = {command: f" [{number}]" for number, command in enumerate(self.commands, 1)}
        numbered = self.cells["text"] + self.cells["command"].map(lambda command: numbers.get(command, ""))
        cells = self.cells.assign(text=numbered)
        wide = cells.pivot(index=list(self.index), columns=self.column, values="text").fillna("")
        rows = self.cells.set_index(list(self.index)).index.unique()
        return wide.loc[rows, list(self.cells[self.column].unique())].rename_axis(columns=None)

    def to_latex(self) -> str:
        """Return the table as LaTeX, for the packages booktabs and multirow."""
        styler = self.text.style.format(escape="latex").format_index(escape="latex", axis=0)
        columns = "l" * len(self.index) + "r" * self.cells[self.column].nunique()
        clines = "skip-last;index" if len(self.index) > 1 else None
        body = styler.to_latex(hrules=True, multirow_align="t", clines=clines, column_format=columns)
        gaps = [
            rf"[{number}] \texttt{{{_latex(command).replace('--', '-{}-')}}}"
            for number, command in enumerate(self.commands, 1)
        ]
        return _document(self.title, body, [*map(_latex, self.notes), *gaps])

    def save(self, name: str, folder: Path | None = None) -> "Table":
        """Write `tables/<name>.csv` (every cell with its numbers in full) and `.tex`; return the table."""
        _save(self.cells, self.to_latex(), name, folder)
        return replace(self, name=name)

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""
        styler = self.text.style.map(_emphasis)
        notes = [html.escape(note) for note in self.notes]
        notes += [
            f"[{number}] no finished run; this command makes it: <code>{html.escape(command)}</code>"
            for number, command in enumerate(self.commands, 1)
        ]
        uuid = f"{zlib.crc32(self.title.encode()):x}"  # two tables of one name would share their styles
        table = styler.to_html(table_uuid=uuid, table_attributes='class="results"', escape=True)
        return _page(self.name, self.title, table, notes)


@dataclass(frozen=True)
class Listing:
    """A table of words, such as the claims."""

    title: str
    cells: pd.DataFrame
    """The table itself; its index is not shown."""
    notes: tuple[str, ...] = ()
    """What a reader must know about it."""
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
    def shown(self) -> pd.DataFrame:
        """The columns that are shown."""
        return self.cells.drop(columns=list(self.hidden))

    def to_latex(self) -> str:
        """Return the table as LaTeX, for the package booktabs."""
        count = max(1, self.shown.shape[1])
        columns = rf"p{{{0.95 / count:.2f}\linewidth}}" * count
        styler = self.shown.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
        return _document(self.title, styler.to_latex(hrules=True, column_format=columns), map(_latex, self.notes))

    def to_markdown(self) -> str:
        """Return the table as Markdown."""
        rows = [list(self.shown.columns), ["---"] * self.shown.shape[1], *self.shown.to_numpy().tolist()]
        return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |" for row in rows)

    def save(self, name: str, folder: Path | None = None) -> "Listing":
        """Write `tables/<name>.csv` and `.tex`; return the table."""
        _save(self.cells, self.to_latex(), name, folder)
        return replace(self, name=name)

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""
        cells = self.shown.astype(str)
        shown = pd.DataFrame({name: cells[name].map(self.markup.get(name, html.escape)) for name in cells})
        with pd.option_context("display.max_colwidth", None):
            table = shown.to_html(index=False, escape=False, border=0, classes="listing")
        return _page(self.name, self.title, table, map(html.escape, self.notes))


def _save(frame: pd.DataFrame, latex: str, name: str, folder: Path | None) -> None:
    folder = (folder or output_folder()) / "tables"
    with atomic_path(folder / f"{name}.csv") as temporary:
        frame.to_csv(temporary, index=False, float_format="%.8g")
    with atomic_path(folder / f"{name}.tex") as temporary:
        temporary.write_text(latex, encoding="utf-8")


def _document(title: str, body: str, notes: Iterable[str]) -> str:
    """Return a table's LaTeX with its title above and its notes below."""
    packages = "booktabs, multirow" if "multirow" in body else "booktabs"
    lines = "\n\n".join(notes)
    return f"% packages: {packages}\n\\textbf{{{_latex(title)}}}\n\n{_symbols(body)}\n{lines}\n"


def _page(name: str, title: str, table: str, notes: Iterable[str]) -> str:
    """Return a table's HTML with its title above and its notes, of HTML themselves, below."""
    anchor = f' id="{name}"' if name else ""
    items = "".join(f"<li>{note}</li>" for note in notes)
    below = f"<ul>{items}</ul>" if items else ""
    return f'<h4{anchor}>{html.escape(title)}</h4><div class="wide">{table}</div>{below}'


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
            for model in chosen:
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
    remarks = [note for note in dict.fromkeys(stand_ins) if note]
    title = f"Compression of the CGN's mechanisms, {runs.dataset_title(dataset)}"
    title += f" ({'; '.join(remarks)})" if remarks else ""
    return Table(title, table, (_READING, *notes))


def convergence(store: Store, dataset: str = "double_colored", profile: str | None = None) -> Table:
    """Compare how fast students learn, and how far they come, with and without KL (Appendix D.2, Fig. 15).

    Args:
        store: the run store.
        dataset: whose teacher.
        profile: of the runs; by default the first of `runs.PROFILES` that has any.
    """
    tag, titles = ablations.ARMS[ablations.CONVERGENCE]
    chosen = ablations.chosen(store, ablations.CONVERGENCE, dataset, profile)
    arms = {title: arm for arm, title in titles.items()}
    cells = []
    for mechanism in Mechanism:
        shown = chosen[chosen["mechanism"] == mechanism]
        for metric in ("steps_to_target", "iou" if mechanism is Mechanism.SHAPE else "l1"):
            for title in (*arms, _GAIN):
                if title == _GAIN:
                    values = ablations.difference(shown, tag, "paper", "none", metric)
                else:
                    values = shown[shown[tag] == arms[title]].get(f"final/{metric}", pd.Series()).dropna().tolist()
                missing = shown.empty if title == _GAIN else not (shown[tag] == arms[title]).any()
                command = runs.command(ablations.CONVERGENCE, dataset, mechanism, profile) if missing else ""
                text = interval_text(values) if values else "no finished run" if missing else "never reached"
                interval = metrics.mean_interval(values)._asdict() if values else {"n": 0}
                place = {"mechanism": mechanism.value, "quantity": ablations.METRICS[metric], "model": title}
                cells.append(place | interval | {"command": command, "text": text})
    table = pd.DataFrame(cells)
    title = f"Convergence with and without KL, {runs.dataset_title(dataset)}"
    notes = ["Means over seeds with their 95 % Student-t interval and n. The last column is paired by seed."]
    if not chosen.empty:
        first = chosen.iloc[0]
        notes.append(
            f"The target is a mask IoU of {first['param/target_iou']}, an L1 of {first['param/target_l1']}, on "
            f"held-out noise. Profile {first['profile']}, {runs.steps(first):,} steps; teacher: {first['teacher']}."
        )
        remark = runs.stand_in_note(first)
        title += f" ({remark})" if remark else ""
    return Table(title, table, tuple(notes))


def ablation_verdicts(store: Store, dataset: str = "double_colored", profile: str | None = None) -> Listing:
    """Return the paired differences of Appendix D's objectives, of KL and of the noise pairing, with their verdicts."""
    verdicts = ablations.verdicts(store, dataset, profile)
    interval = ["mean", "low", "high", "n"]
    rows = (metrics.Interval(*row) for row in verdicts[interval].itertuples(index=False))
    texts = [write_interval(row, "+.3g") if row.n else "" for row in rows]
    verdicts.insert(verdicts.columns.get_loc("mean"), "over seeds", texts)
    title = f"Differences between objectives, paired by seed, {runs.dataset_title(dataset)}"
    note = "Over seeds: the mean of the differences, its 95 % Student-t interval, and n."
    return Listing(title, verdicts, (note,), hidden=tuple(interval))


def best_trials(store: Store, experiment: str) -> Listing:
    """Return the best trials of a search beside the one with the paper's values."""
    trials = sweeps.best_trials(store, experiment).reset_index()
    return Listing(
        f"Best trials of {experiment}, and the first, which has the paper's values",
        trials.map(lambda value: f"{value:.4g}" if isinstance(value, float) else value),
        (sweeps.verdict(store, experiment),),
    )


def ablation_means(store: Store, experiment: str, dataset: str | None = None, profile: str | None = None) -> Listing:
    """Return the final metrics of an ablation: a row for each mechanism and arm."""
    dataset = dataset or runs.main_dataset(store, experiment)
    title = f"Final held-out metrics of {experiment}, {runs.dataset_title(dataset)}"
    means = ablations.means(store, experiment, dataset, profile).reset_index()
    return Listing(title, means, ("Mean over seeds, its 95 % Student-t interval, and n.",))


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
    if quantity.key in published_size():  # counted, not measured
        text = format(values[0] * quantity.scale, quantity.form)
    else:
        text = interval_text(values, quantity.form, quantity.scale)
    return metrics.mean_interval(values)._asdict() | {"text": text, "command": ""}


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
    for character, command in _SYMBOLS.items():
        text = text.replace(character, command)
    return text
