"""From a run store to every figure of the gallery, and to the report that the notebooks make."""

import ast
import html
import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from record import add

from analysis.frame import style
from analysis.frame.view import View
from analysis.report import gallery, render
from skdcgn.errors import InputError
from skdcgn.mechanisms import Mechanism
from skdcgn.runs.store import Store, open_store

ANALYSIS = Path(render.__file__).parents[1]

SIZES = {"parameters": 50, "teacher_parameters": 100, "macs": 3e6, "teacher_macs": 2e6}

ARMS = {
    "mnist_kd": ("source", ["skdcgn"]),
    "ablation_losses": ("variant", ["tinygan", "cross_entropy", "d1_kl_layers", "d2_kl_outputs", "d3_mse"]),
    "kl_convergence": ("kl", ["none", "paper"]),
    "noise_pairing": ("pairing", ["exact", "published"]),
    "imagenet_kd": ("objective", ["no_kl", "kl"]),
}

DRAWN = ("2", "6", "6 on MNIST", "7", "11", "12", "13", "14", "15", "15 on MNIST", "16")
DRAWN += ("learning curves", "noise pairing", "objectives", "convergence")


def record() -> Iterator[dict[str, Any]]:
    """Runs with everything that a figure is drawn from, in as few pixels as it takes."""
    params = {"distill.steps": 30, "distill.texture_steps": "None", "target_iou": 0.5, "target_l1": 0.05}
    for experiment, (tag, names) in ARMS.items():
        dataset = "miniature" if experiment == "imagenet_kd" else "double_colored"
        common = {"profile": "quick", "dataset": dataset, "teacher": "a teacher", "teacher_sha256": "abc"}
        common |= {"stand_in": dataset == "miniature", "hardware": "a machine", "classes": "all"}
        side = 32 if dataset == "miniature" else 8  # pixels
        images = {who: [20, 3, side, side] for who in ("teacher", "student")}
        masks = {f"mask_{who}": [20, 1, side, side] for who in images}
        labels = {f"labels_{mechanism}": [20] for mechanism in Mechanism}
        yield {
            "experiment": experiment,
            "name": f"{experiment} composed",
            "tags": {**common, "kind": "skdcgn", "seed": 0},
            "tensors": {"counterfactuals": {**images, **masks, **labels}},
        }
        for mechanism, name, seed in itertools.product(Mechanism, names, range(2 if experiment == "mnist_kd" else 1)):
            samples = {"labels": [20], **{key: [20, mechanism.channels, side, side] for key in images}}
            pixels = {key: torch.zeros(10, 3, side, side, dtype=torch.uint8) for key in images}
            metrics = {"iou": 0.8 + seed / 10, "l1": 0.1, "noise_energy": 1.0, "noise_response": 0.5, "seen_l1": 0.1}
            yield {
                "experiment": experiment,
                "name": f"{experiment} {mechanism} {name} {seed}",
                "tags": {**common, "kind": "student", "mechanism": mechanism.value, "seed": seed, tag: name},
                "params": params,
                "metrics": {f"final/{key}": value for key, value in {**metrics, **SIZES}.items()},
                "history": {key: [[2, 0.2], [30, 0.1]] for key in ("heldout/iou", "heldout/l1", "loss/total")},
                "tensors": {"samples": samples, **{f"heldout_{step:07d}": pixels for step in (2, 30)}},
            }


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> tuple[Store, dict[str, str]]:
    """A store with a run for most figures, and the ids of its runs."""
    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    shutil.copy(empty_store, database)
    store = open_store(f"sqlite:///{database}")
    return store, add(store, record())


def test_every_figure_of_a_gallery_is_drawn(filled: tuple[Store, dict[str, str]]) -> None:
    view, ids = View(filled[0]), set(filled[1].values())
    for key in DRAWN:
        for name, figure in gallery.FIGURES[key](view).items():
            assert not style.is_gap(figure), name
            assert style.cited(figure), name
            assert set(style.cited(figure)) <= ids, name


def test_deleting_a_run_shows_the_gap(tmp_path: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    store = open_store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    ids = add(store, (run for run in record() if run["experiment"] == "mnist_kd"))
    assert not any(style.is_gap(figure) for figure in gallery.FIGURES["7"](View(store)).values())
    for seed in range(2):
        mlflow.MlflowClient(store.uri).delete_run(ids[f"mnist_kd texture skdcgn {seed}"])
    assert [style.is_gap(figure) for figure in gallery.FIGURES["7"](View(store)).values()] == [False, True, False]


# --- notebooks and report


@pytest.mark.parametrize("path", sorted(ANALYSIS.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None and not cell.metadata for cell in code)


def test_the_notebooks_show_the_whole_gallery() -> None:
    code = "".join(path.read_text() for path in ANALYSIS.glob("*.ipynb"))
    for kind, gallery_of_kind in (("FIGURES", gallery.FIGURES), ("TABLES", gallery.TABLES)):
        assert set(re.findall(rf'gallery\.{kind}\[\\"([^"\\]+)\\"\]', code)) == set(gallery_of_kind)


@pytest.fixture(scope="module")
def output(filled: tuple[Store, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The notebooks, rendered once from the store made by hand."""
    folder = tmp_path_factory.mktemp("rendered") / "output"
    assert render.render(render.Config(filled[0].uri, folder)) == folder / "report.html"
    return folder


def test_the_report_stands_alone_and_shows_everything(output: Path) -> None:
    page = (output / "report.html").read_text()
    assert "://" not in re.sub(r"<code>sqlite:///[^<]*</code>", "", page)
    assert not re.search(r"<(script|link|iframe)\b", page)
    sources = re.findall(r'src="([^"]{0,22})', page)
    assert len(sources) == len(list((output / "figures").glob("*.png")))
    assert set(sources) == {"data:image/png;base64,"}
    assert "0.850 [0.215, 1.485], n=2" in page
    assert "Traceback" not in page
    assert "Warning" not in page


def test_the_report_is_in_order_and_its_links_lead_somewhere(output: Path) -> None:
    page = (output / "report.html").read_text()
    sections = re.findall(r'<section id="(\w+)">', page)
    assert sections == list(render.ORDER)
    ids = re.findall(r' id="([^"]+)"', page)
    links = set(re.findall(r'href="#([^"]+)"', page))
    assert links <= set(ids)
    headings = [anchor for anchor in links if "-" in anchor]
    assert len(headings) > 20
    assert all(ids.count(anchor) == 1 for anchor in headings)
    assert "Finished runs by profile: 39 at quick." in page
    assert "Runs by commit of the code that made them: code that was not committed (39)." in page


def test_rendering_leaves_figures_and_tables_and_nothing_else(output: Path) -> None:
    names = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    stems = ["figure_7a_shape", "figure_7b_texture", "figure_7c_background", "figure_6_mnist", "figure_11"]
    stems += [f"learning_curve_{mechanism}" for mechanism in Mechanism]
    drawn = {f"figures/{stem}.{suffix}" for stem in stems for suffix in ("png", "pdf")}
    assert names >= {"report.html", "tables/compression.csv", "tables/compression.tex"} | drawn
    figures, tables = ({name for name in names if name.startswith(folder)} for folder in ("figures/", "tables/"))
    assert names == {"report.html"} | figures | tables
    assert {Path(name).suffix for name in figures} == {".png", ".pdf"}
    assert {Path(name).suffix for name in tables} == {".csv", ".tex"}
    assert sorted(path.name for path in output.iterdir()) == ["figures", "report.html", "tables"]


def test_a_failing_cell_is_named_and_the_old_report_stays(filled: tuple[Store, dict[str, str]], tmp_path: Path) -> None:
    broken = tmp_path / "broken.ipynb"
    cells = [new_markdown_cell("# Broken"), new_code_cell("fine = 1"), new_code_cell("wrong = 1 / 0\nprint(wrong)")]
    nbformat.write(new_notebook(cells=cells), broken)
    report = tmp_path / "output" / "report.html"
    report.parent.mkdir()
    report.write_text("the old one")
    with pytest.raises(InputError, match=r"broken\.ipynb fails in cell 3 \(`wrong = 1 / 0`\): ZeroDivisionError"):
        render.render(render.Config(filled[0].uri, report.parent), [broken])
    assert report.read_text() == "the old one"
    assert [path.name for path in report.parent.iterdir()] == ["report.html"]


def test_notebooks_of_one_kernel_see_nothing_of_each_other(
    filled: tuple[Store, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "_KERNELS", 1)
    paths = [tmp_path / "first.ipynb", tmp_path / "second.ipynb"]
    shown = "import os\nprint(f'process {os.getpid()}:', sorted({'mine', 'os'} & {*globals()}))"
    for path, code in zip(paths, ("mine = 1\n" + shown, shown), strict=True):
        nbformat.write(new_notebook(cells=[new_markdown_cell(f"# {path.stem}"), new_code_cell(code)]), path)
    page = render.render(render.Config(filled[0].uri, tmp_path / "output"), paths).read_text()
    said = re.findall(r"process (\d+): (.*)", html.unescape(page))
    assert [names for _, names in said] == ["['mine', 'os']", "['os']"]
    assert len({process for process, _ in said}) == 1


def test_the_analysis_knows_neither_mlflow_nor_scripts_nor_optuna() -> None:
    for path in sorted(ANALYSIS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"mlflow", "optuna", "experiments"}, path
