"""Execute the notebooks and write what a reader opens: one HTML report, the figures and the tables.

    python -m analysis.report.render                                     the local run store, into analysis/output
    python -m analysis.report.render --store http://host:5000 --output report

The report is a single file that needs no network. It is replaced only when every notebook ran to its end.
"""

import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import pandas as pd
import tyro
from jinja2 import Environment
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from traitlets.config import Config as TraitletsConfig

from analysis.frame.style import OUTPUT_VARIABLE
from analysis.frame.view import View
from skdcgn import cli
from skdcgn.errors import InputError
from skdcgn.runs.store import Store, open_store

_FOLDER = Path(__file__).resolve().parents[1]

_TEMPLATE = Path(__file__).with_name("report.html.j2")

_CELL_SECONDS = 600

_KERNELS = 4  # at the same time, at most: a kernel takes about 700 MB

ORDER = ("report", "figures", "tables", "ablations", "sweeps")
"""Notebooks in the order in which the report has them; others follow."""

_HEADING = re.compile(r'<h([12])[^>]*? id="([^"]*)"[^>]*>(.*?)<(?:a|\/h)', re.DOTALL)


@dataclass(frozen=True)
class Config:
    """What to render, and where to."""

    store: str | None = None
    """MLflow tracking URI of the run store; by default MLFLOW_TRACKING_URI, or else the local store."""
    output: Path = _FOLDER / "output"
    """Folder for report.html, figures/ and tables/."""


def render(config: Config, notebooks: Sequence[Path] | None = None) -> Path:
    """Execute notebooks and write the report.

    Args:
        config: store and output folder.
        notebooks: which ones; by default all of this folder, in the order of `ORDER`.

    Returns:
        The path of `report.html`.

    Raises:
        InputError: the store cannot be opened, or a cell fails.
        OSError: the disk is full, for example. In either case nothing of the old output is touched.
    """
    store = open_store(config.store)
    notebooks = sorted(_FOLDER.glob("*.ipynb"), key=_place) if notebooks is None else notebooks
    output = config.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".rendering-") as folder:
        environment = {
            **os.environ,
            "MLFLOW_TRACKING_URI": store.uri,
            OUTPUT_VARIABLE: folder,
            "PYTHONWARNINGS": "ignore:IProgress",  # tqdm misses the widgets, which a report cannot show anyway
            # The kernel must import this very code, wherever it was started.
            "PYTHONPATH": os.pathsep.join(filter(None, [str(_FOLDER.parent), os.environ.get("PYTHONPATH")])),
        }
        executed = _execute_all(notebooks, environment)
        (Path(folder) / "report.html").write_text(_page(executed, store), encoding="utf-8")
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            target = output / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    return output / "report.html"


def _execute_all(notebooks: Sequence[Path], environment: Mapping[str, str]) -> dict[str, NotebookNode]:
    """Run notebooks side by side, each in a kernel of its own; after a failure no further one is begun."""
    with ThreadPoolExecutor(min(_KERNELS, os.cpu_count() or 1)) as pool:
        futures = {path.stem: pool.submit(_execute, path, environment) for path in notebooks}
        try:
            return {name: future.result() for name, future in futures.items()}
        finally:
            pool.shutdown(cancel_futures=True)


def _execute(path: Path, environment: Mapping[str, str]) -> NotebookNode:
    """Run a notebook in a kernel of this Python, in the caller's directory, and return it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory(prefix="skdcgn-") as sockets:
        manager = {"transport": "ipc", "ip": f"{sockets}/kernel"}  # no open ports
        client = NotebookClient(
            notebook,
            timeout=_CELL_SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": str(Path.cwd())}},  # a relative store URI must mean the same there
            config=TraitletsConfig({"KernelManager": manager}),
        )
        _execute_cells(client, path.name, environment)
    return notebook


def _execute_cells(client: NotebookClient, name: str, environment: Mapping[str, str]) -> None:
    """Run the cells of a client's notebook in its kernel."""
    with client.setup_kernel(env=dict(environment)):
        for number, cell in enumerate(client.nb.cells, 1):
            try:
                client.execute_cell(cell, number - 1)
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                reason = f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError) else str(error)
                first_line = cell.source.strip().splitlines()[0]
                raise InputError(f"notebook {name} fails in cell {number} (`{first_line}`): {reason.strip()}") from None


def _place(path: Path) -> tuple[int, str]:
    """Return what notebooks are sorted by."""
    return (ORDER.index(path.stem) if path.stem in ORDER else len(ORDER), path.stem)


def _page(executed: Mapping[str, NotebookNode], store: Store) -> str:
    """Put the outputs of executed notebooks on one page that links to nothing outside itself."""
    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True, anchor_link_text="")
    bodies = {name: exporter.from_notebook_node(notebook)[0] for name, notebook in executed.items()}
    template = Environment(autoescape=True).from_string(_TEMPLATE.read_text(encoding="utf-8"))
    view = View(store)
    runs = pd.concat([pd.DataFrame(columns=["profile", "commit"]), *map(view.results, view.experiments())])
    commits = runs["commit"].str[:10].replace("", "code that was not committed").value_counts()
    return template.render(
        bodies=bodies,
        contents={name: _HEADING.findall(body) for name, body in bodies.items()},
        uri=store.uri,
        time=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        profiles=", ".join(f"{n} at {profile}" for profile, n in runs["profile"].value_counts().items()) or "none",
        commits=", ".join(f"{commit} ({n})" for commit, n in commits.items()) or "none",
    )


def main() -> None:
    """Render, and say where to look."""
    report = render(tyro.cli(Config, description=__doc__))
    print(f"report: {report}", file=sys.stderr)


if __name__ == "__main__":
    cli.entry(main)
