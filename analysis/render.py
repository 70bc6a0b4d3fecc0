"""Execute the notebooks and write what a reader opens: one HTML report, the figures and the tables.

    python -m analysis.render                                     the local run store, into analysis/output
    python -m analysis.render --store http://host:5000 --output /tmp/report

The report is a single file that needs no network. It is replaced only when every notebook ran to its end.
"""

import html
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
import tyro
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from traitlets.config import Config as TraitletsConfig

from analysis.style import OUTPUT_VARIABLE
from skdcgn import cli, tracking
from skdcgn.errors import InputError
from skdcgn.runtime import atomic_path

_FOLDER = Path(__file__).resolve().parent
_CELL_SECONDS = 600

_STYLE_SHEET = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1040px; margin: 0 auto; padding: 24px; }
h1 { border-bottom: 1px solid #ccc; padding-bottom: 8px; margin-top: 48px; }
h2 { margin-top: 40px; }
a.anchor-link { display: none; }
img { max-width: 100%; }
code { background: #f3f3f3; padding: 1px 4px; font-size: 0.9em; overflow-wrap: anywhere; }
pre { background: #f8f8f8; padding: 8px; overflow-x: auto; font-size: 13px; }
table { border-collapse: collapse; font-size: 14px; margin: 16px 0; }
th, td { padding: 4px 14px; text-align: right; vertical-align: top; border-bottom: 1px solid #e4e4e4; }
th.row_heading, th.index_name { text-align: left; font-weight: normal; }
th.row_heading.level0 { font-weight: bold; }
thead tr:last-child th { border-bottom: 2px solid #444; }
ul { font-size: 14px; color: #444; }
.meta { color: #555; font-size: 14px; }
"""


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
        notebooks: which ones; by default all of this folder, in order of their names.

    Returns:
        The path of `report.html`.

    Raises:
        InputError: the store cannot be opened, or a cell fails; then nothing of the old output is touched.
    """
    store = tracking.open_store(config.store)
    notebooks = sorted(_FOLDER.glob("*.ipynb")) if notebooks is None else notebooks
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
        executed = {path.stem: _execute(path, environment) for path in notebooks}
        page = _page(executed, store.uri)
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            target = output / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    report = output / "report.html"
    with atomic_path(report) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return report


def _execute(path: Path, environment: Mapping[str, str]) -> NotebookNode:
    """Run a notebook in a kernel of this Python, in the caller's directory, and return it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=_CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(Path.cwd())}},  # a relative store URI must mean the same there
        config=TraitletsConfig({"KernelManager": {"transport": "ipc"}}),  # no open ports
    )
    with client.setup_kernel(env=dict(environment)):
        for number, cell in enumerate(notebook.cells, 1):
            try:
                client.execute_cell(cell, number - 1)
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                reason = f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError) else str(error)
                first_line = cell.source.strip().splitlines()[0]
                raise InputError(
                    f"notebook {path.name} fails in cell {number} (`{first_line}`): {reason.strip()}"
                ) from None
    return notebook


def _page(executed: Mapping[str, NotebookNode], uri: str) -> str:
    """Put the outputs of executed notebooks on one page that links to nothing outside itself."""
    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True)
    sections = [
        f'<section id="{html.escape(name)}">{exporter.from_notebook_node(notebook)[0]}</section>'
        for name, notebook in executed.items()
    ]
    links = " · ".join(f'<a href="#{html.escape(name)}">{html.escape(name)}</a>' for name in executed)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>SKDCGN: report</title><style>{_STYLE_SHEET}</style></head>\n<body>\n"
        f'<p class="meta">SKDCGN, drawn from the run store <code>{html.escape(uri)}</code>. {links}</p>\n'
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def main() -> None:
    """Render, and say where to look."""
    report = render(tyro.cli(Config, description=__doc__))
    print(f"report: {report}", file=sys.stderr)


if __name__ == "__main__":
    cli.entry(main)
