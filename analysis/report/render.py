"""Execute the notebooks and write what a reader opens: one HTML report, the figures and the tables.

    python -m analysis.report.render                                     the local run store, into analysis/output
    python -m analysis.report.render --store http://host:5000 --output report

The report is a single file that needs no network. It is replaced only when every notebook ran to its end.
"""

import os
import re
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
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
from nbformat.v4 import new_notebook
from traitlets.config import Config as TraitletsConfig

from analysis.frame.output import OUTPUT_VARIABLE
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
    """Run notebooks in a few kernels side by side; after a failure no further one is begun."""
    waiting = deque(notebooks)
    kernels = min(_KERNELS, os.cpu_count() or 1, len(notebooks))
    executed: dict[str, NotebookNode] = {}
    with ThreadPoolExecutor(kernels) as pool:
        workers = [pool.submit(_work, waiting, executed, environment) for _ in range(kernels)]
        try:
            for worker in as_completed(workers):
                worker.result()
        finally:
            waiting.clear()
    return {path.stem: executed[path.stem] for path in notebooks}


def _work(waiting: deque[Path], executed: dict[str, NotebookNode], environment: Mapping[str, str]) -> None:
    """Run waiting notebooks, one after another, in a kernel that keeps its imports: these take seconds."""
    with _kernel(environment) as client:
        while True:
            try:
                path = waiting.popleft()
            except IndexError:  # also where another thread took the last one
                return
            client.nb = executed[path.stem] = nbformat.read(path, as_version=4)
            client.kc.execute("%reset -f", silent=True)  # no notebook sees what another one has defined
            _execute_cells(client, path.name)


@contextmanager
def _kernel(environment: Mapping[str, str]) -> Iterator[NotebookClient]:
    """Yield a client of a kernel of this Python, in the caller's directory."""
    with tempfile.TemporaryDirectory(prefix="skdcgn-") as sockets:
        manager = {"transport": "ipc", "ip": f"{sockets}/kernel"}  # no open ports
        client = NotebookClient(
            new_notebook(),
            timeout=_CELL_SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": str(Path.cwd())}},  # a relative store URI must mean the same there
            shutdown_kernel="immediate",  # it holds nothing
            config=TraitletsConfig({"KernelManager": manager}),
        )
        with client.setup_kernel(env=dict(environment)):
            yield client


def _execute_cells(client: NotebookClient, name: str) -> None:
    """Run the cells of a client's notebook in its kernel."""
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
