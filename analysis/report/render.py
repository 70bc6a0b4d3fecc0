"""Execute the notebooks and write what a reader opens: one HTML report, the figures and the tables.

    python -m analysis.report.render                                     the local run store, into analysis/output
    python -m analysis.report.render --store http://host:5000 --output /tmp/report

The report is a single file that needs no network. It is replaced only when every notebook ran to its end.
"""

import html
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import tyro
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from traitlets.config import Config as TraitletsConfig

from analysis.frame.style import OUTPUT_VARIABLE
from analysis.frame.view import View
from skdcgn import cli
from skdcgn.errors import InputError
from skdcgn.files import atomic_path
from skdcgn.runs.store import Store, open_store

_FOLDER = Path(__file__).resolve().parents[1]

_CELL_SECONDS = 600

_KERNELS = 4  # at the same time, at most: a kernel takes about 700 MB

ORDER = ("report", "figures", "tables", "ablations", "sweeps")
"""Notebooks in the order in which the report has them; others follow."""

_STYLE_SHEET = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1040px; margin: 0 auto; padding: 24px; }
h1 { border-bottom: 1px solid #ccc; padding-bottom: 8px; margin-top: 48px; }
h2 { margin-top: 40px; }
h4 { margin: 24px 0 8px; }
a { color: #0b5394; }
img { max-width: 100%; }
figure { margin: 8px 0 24px; }
figcaption, details { font-size: 12px; color: #555; }
code { background: #f3f3f3; padding: 1px 4px; font-size: 0.9em; overflow-wrap: anywhere; }
pre { background: #f8f8f8; padding: 8px; overflow-x: auto; font-size: 13px; white-space: pre-wrap; }
table { border-collapse: collapse; font-size: 14px; }
th, td { padding: 4px 12px; vertical-align: top; border-bottom: 1px solid #e4e4e4; }
table.results th, table.results td { text-align: right; }
table.listing thead th, table.listing td { text-align: left; font-size: 13px; min-width: 4em; }
th.row_heading, th.index_name { text-align: left !important; font-weight: normal; }
th.row_heading.level0 { font-weight: bold; }
thead tr:last-child th { border-bottom: 2px solid #444; }
div.wide { overflow-x: auto; margin: 8px 0 16px; }
ul { font-size: 14px; color: #444; }
.meta { color: #555; font-size: 14px; }
.verdict { font-weight: bold; padding: 1px 6px; border-left: 5px solid #949494; display: inline-block; min-width: 7em; }
.verdict.confirmed { border-color: #029e73; }
.verdict.partly { border-color: #ece133; }
.verdict.refuted { border-color: #d55e00; }
.verdict.indicative-on-the-miniature { border-color: #56b4e9; }
nav { font-size: 14px; }
nav ul { list-style: none; padding-left: 12px; margin: 2px 0; }
nav > ul > li > a { font-weight: bold; }
@media (min-width: 1380px) {
  nav { position: fixed; left: 0; top: 0; bottom: 0; width: 230px; overflow-y: auto; padding: 16px; }
  body { margin-left: 280px; }
}
"""

_HEADING = re.compile(r'<h([12])([^>]*?) id="([^"]*)"([^>]*)>(.*?)</h\1>', re.DOTALL)

_ANCHOR = re.compile(r'<a class="anchor-link".*?</a>')


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
        InputError: the store cannot be opened, or a cell fails; then nothing of the old output is touched.
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
            # The kernel must import this very code, from whatever directory it was started.
            "PYTHONPATH": os.pathsep.join(filter(None, [str(_FOLDER.parent), os.environ.get("PYTHONPATH")])),
        }
        executed = _execute_all(notebooks, environment)
        page = _page(executed, _origin(store))
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            target = output / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    report = output / "report.html"
    with atomic_path(report) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return report


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


def _origin(store: Store) -> str:
    """Say, as HTML, what the report is drawn from: store, profiles, commits, and when."""
    profiles, commits = Counter[str](), Counter[str]()
    view = View(store)
    for experiment in view.experiments():
        results = view.results(experiment)
        profiles.update(results["profile"])
        commits.update(results["commit"].str[:10].replace("", "code that was not committed"))
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    counted = ", ".join(f"{count} at {profile}" for profile, count in profiles.most_common()) or "none"
    made_by = ", ".join(f"{commit} ({count})" for commit, count in commits.most_common()) or "none"
    return (
        f"Drawn from the run store <code>{html.escape(store.uri)}</code> on {now}. Finished runs by profile: "
        f"{html.escape(counted)}. Runs by commit of the code that made them: {html.escape(made_by)}."
    )


def _page(executed: Mapping[str, NotebookNode], origin: str) -> str:
    """Put the outputs of executed notebooks on one page that links to nothing outside itself."""
    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True)
    sections, entries = [], []
    for name, notebook in executed.items():
        body = _ANCHOR.sub("", exporter.from_notebook_node(notebook)[0])
        # The same heading may stand in two notebooks.
        body = _HEADING.sub(rf'<h\1\2 id="{html.escape(name)}-\3"\4>\5</h\1>', body)
        sections.append(f'<section id="{html.escape(name)}">{body}</section>')
        entries.append(_contents(body))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>SKDCGN: report</title><style>{_STYLE_SHEET}</style></head>\n<body>\n"
        f'<nav><ul>{"".join(entries)}</ul></nav>\n<p class="meta">SKDCGN. {origin}</p>\n'
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def _contents(body: str) -> str:
    """Return the headings of a notebook as entries of a list: its title, and below it its sections."""
    links = [
        (int(level), f'<a href="#{anchor}">{re.sub("<[^>]*>", "", title).strip()}</a>')
        for level, _, anchor, _, title in _HEADING.findall(body)
    ]
    below = "".join(f"<li>{link}</li>" for level, link in links if level > 1)
    return "".join(f"<li>{link}<ul>{below}</ul></li>" for level, link in links if level == 1)


def main() -> None:
    """Render, and say where to look."""
    report = render(tyro.cli(Config, description=__doc__))
    print(f"report: {report}", file=sys.stderr)


if __name__ == "__main__":
    cli.entry(main)
