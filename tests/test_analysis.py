"""From a run store made by hand to figures, tables and the report."""

import ast
import contextlib
import itertools
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import record
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

from analysis import mnist_kd as mnist_kd_figures
from analysis.frame import style, view
from analysis.frame import table as tables
from analysis.report import gallery, render
from skdcgn.errors import InputError
from skdcgn.mechanisms import Mechanism
from skdcgn.runs import run as run_module
from skdcgn.runs import store as run_store
from skdcgn.runtime import Runtime

ANALYSIS = Path(view.__file__).parents[1]
LABELS = torch.arange(10).repeat(2)


@dataclass(frozen=True)
class Distill:
    steps: int = 12
    texture_steps: int | None = None


@dataclass(frozen=True)
class Config:
    profile: str = "quick"
    seeds: tuple[int, ...] = (0,)
    distill: Distill = field(default_factory=Distill)
    runtime: Runtime = field(default_factory=lambda: Runtime(force=True))


def tags(profile: str = "quick", dataset: str = "double_colored", **more: object) -> dict[str, object]:
    fixed = {"teacher": "a teacher", "teacher_sha256": "abc", "stand_in": False, "hardware": "a machine"}
    return {"profile": profile, "dataset": dataset, **fixed, **more}


@contextlib.contextmanager
def group(store: run_store.Store, **tag: object) -> Iterator[run_module.Run]:
    config = Config(profile=str(tag.get("profile", "quick")))
    with store.start(view.MNIST_KD, config, "group", {"level": "group"}, tags(**tag)) as parent:
        yield parent


def add_run(
    parent: run_module.Run,
    mechanism: Mechanism,
    final: Mapping[str, float],
    seed: int = 0,
    steps: int = 12,
    fail: bool = False,
    **tag: object,
) -> str:
    """Add a finished student to a store: a white student of a black teacher, and a history of two evaluations."""
    config = Config(profile=str(tag.get("profile", "quick")), seeds=(seed,), distill=Distill(steps))
    names = tags(mechanism=mechanism.value, seed=seed, **tag)
    sizes = {"parameters": 50, "teacher_parameters": 1000, "macs": 3e6, "teacher_macs": 2e6}
    low = 0.0 if mechanism is Mechanism.SHAPE else -1.0
    images = torch.full((20, mechanism.channels, 8, 8), low)
    with (
        contextlib.suppress(RuntimeError),
        parent.store.start(view.MNIST_KD, config, f"{mechanism} {seed}", None, names, parent) as run,
    ):
        for step in (6, 12):
            run.log_metrics("heldout", {key: final[key] * step / 12 for key in ("iou", "l1") if key in final}, step)
            run.log_metrics("loss", {"total": 2.0 / step, "pixel": 1.0 / step}, step)
        run.log_metrics("final", {**sizes, **final}, 12)
        run.log_metrics("cost", {"latency_ms_batch_1": 1.0 + seed, "teacher_latency_ms_batch_1": 2.0}, 12)
        run.log_tensors("samples", {"labels": LABELS, "teacher": images, "student": torch.ones_like(images)})
        if fail:
            raise RuntimeError("it failed")
    return run.run_id


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> run_store.Store:
    """Shape at two seeds (and older or failed runs that must not count), texture at one, background missing."""
    store = run_store.open_store(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")
    with group(store) as parent:
        add_run(parent, Mechanism.SHAPE, {"iou": 0.1}, seed=0)  # superseded below
        add_run(parent, Mechanism.SHAPE, {"iou": 0.2}, seed=2, steps=99)  # of another setting
        add_run(parent, Mechanism.SHAPE, {"iou": 0.8, "l1": 0.5, "ssim": 0.25}, seed=0)
        add_run(parent, Mechanism.SHAPE, {"iou": 0.9, "l1": 0.5, "ssim": 0.25}, seed=1)
        add_run(parent, Mechanism.SHAPE, {"iou": 0.3}, seed=0, fail=True)
        add_run(parent, Mechanism.TEXTURE, {"l1": 0.125, "ssim": 0.5, "frechet": 7.0})
        masks = torch.zeros(20, 1, 8, 8)
        masks[:, :, :2] = 0.5  # a quarter of all pixels is neither on nor off
        masks[:5, :, 4, 0] = masks[:5, :, 7, 7] = 1.0  # five masks in two pieces
        black, white = torch.full((20, 3, 8, 8), -1.0), torch.ones(20, 3, 16, 16)  # students may be larger
        labels = {f"labels_{mechanism}": (LABELS + index) % 10 for index, mechanism in enumerate(Mechanism)}
        sampled = {"teacher": black, "student": white, "mask_teacher": masks, "mask_student": masks.clone()}
        parent.log_tensors("counterfactuals", {**sampled, **labels})
    with group(store, profile="smoke") as parent:
        add_run(parent, Mechanism.SHAPE, {"iou": 0.4}, profile="smoke")
    with group(store, dataset="digits", stand_in=True) as parent:
        add_run(parent, Mechanism.SHAPE, {"iou": 0.7, "l1": 0.1}, dataset="digits", stand_in=True)
    return store


@pytest.fixture(scope="module")
def finished(store: run_store.Store) -> pd.DataFrame:
    return view.finished_runs(store, view.MNIST_KD)


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text) if text.get_text())


def picture(figure: Figure, block: int = 0) -> np.ndarray:
    return figure.axes[block].images[0].get_array()


# --- figures


def test_figure_7_draws_the_teacher_over_the_student(store: run_store.Store, finished: pd.DataFrame) -> None:
    drawn = mnist_kd_figures.figure_7(store)
    assert list(drawn) == list(Mechanism)
    for block in (0, 1):
        pixels = picture(drawn[Mechanism.SHAPE], block)
        assert (pixels[2:10, 2:10] == 0).all()  # teacher: an empty mask, black
        assert (pixels[12:20, 2:10] == 255).all()  # student: a full one
    words = texts(drawn[Mechanism.SHAPE])
    caption = drawn[Mechanism.SHAPE].texts[1].get_text().replace("\n", " ")
    run_id = view.latest(finished, "double_colored", "shape")["run_id"].iloc[0]
    assert drawn[Mechanism.SHAPE].texts[0].get_text().startswith("Fig. 7a: shape mechanism")
    assert f"Run {run_id[:8]}, profile quick, 12 steps, seed 0; teacher: a teacher." in caption
    assert "IoU 0.800" in caption
    assert "teacher\nstudent" in words
    assert re.search(r"label\n0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n", words)
    assert "stand-in" not in words


def test_a_missing_run_shows_as_a_gap_with_its_command(store: run_store.Store) -> None:
    assert "python experiments/mnist_kd.py --mechanism background" in texts(
        mnist_kd_figures.figure_7(store)[Mechanism.BACKGROUND]
    )
    full = mnist_kd_figures.figure_7(store, "wildlife", "full")[Mechanism.SHAPE]
    assert "python experiments/mnist_kd.py --profile full --dataset wildlife --mechanism shape" in texts(full)
    assert not full.axes[0].images
    for figure in (mnist_kd_figures.figure_11(store, "digits"), mnist_kd_figures.figure_6_mnist(store, "digits")):
        assert "python experiments/mnist_kd.py --dataset digits" in texts(figure)
    assert "--mechanism background" in texts(mnist_kd_figures.learning_curves(store)[Mechanism.BACKGROUND])


def test_what_was_run_on_less_says_so_in_its_title(store: run_store.Store) -> None:
    digits = mnist_kd_figures.figure_7(store, "digits")[Mechanism.SHAPE]
    assert "stand-in: not MNIST" in digits.texts[0].get_text().replace("\n", " ")
    smoke = mnist_kd_figures.learning_curves(store, profile="smoke")[Mechanism.SHAPE]
    assert "smoke test" in smoke.texts[0].get_text()
    stand_in = pd.Series({"dataset": "double_colored", "stand_in": True, "profile": "full"})
    assert view.stand_in_note(stand_in) == "stand-in teacher"


def test_figure_6_draws_skdcgn_over_cgn_with_all_labels(store: run_store.Store) -> None:
    figure = mnist_kd_figures.figure_6_mnist(store)
    pixels = picture(figure)
    assert (pixels[2:10, 2:10] == 255).all()  # the students' counterfactuals are white here
    assert (pixels[12:20, 2:10] == 0).all()
    words = texts(figure)
    assert "SKDCGN\nCGN" in words
    assert "background\n2\n3\n4\n5\n6\n7\n8\n9\n0\n1\n" in words


def test_figure_11_puts_a_number_on_the_noise(store: run_store.Store) -> None:
    words = texts(mnist_kd_figures.figure_11(store)).replace("\n", " ")
    assert "25.0 % of the mask pixels" in words
    assert "5 of 20 masks fall into several pieces" in words


def test_learning_curves_draw_each_seed_and_their_mean(store: run_store.Store) -> None:
    iou, l1, losses = mnist_kd_figures.learning_curves(store)[Mechanism.SHAPE].axes
    first, second, mean = (line.get_ydata() for line in iou.lines)
    np.testing.assert_allclose([first, second, mean], [[0.4, 0.8], [0.45, 0.9], [0.425, 0.85]])
    assert l1.get_title() == "held-out L1 ↓"
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["total", "pixel"]
    assert len(mnist_kd_figures.learning_curves(store)[Mechanism.TEXTURE].axes) == 2  # no IoU


# --- tables


def cell(table: tables.Table, mechanism: str, quantity: str, model: str) -> str:
    return table.text.loc[(mechanism, quantity), model]


def test_compression_has_hand_checked_values(store: run_store.Store) -> None:
    table = mnist_kd_figures.compression(store)
    assert list(table.text.columns) == ["teacher", "paper's student", "ours"]
    assert cell(table, "shape", "parameters", "teacher") == "1,000"
    assert cell(table, "shape", "parameters", "ours") == "50 (20.0× smaller)"
    assert cell(table, "shape", "MACs of one image (millions)", "ours") == "3.00 (1.5× larger)"
    # 0.85 ± 12.706 * 0.0707 / sqrt(2): Student's t with one degree of freedom
    assert cell(table, "shape", "mask IoU ↑", "ours") == "0.850 [0.215, 1.485], n=2"
    assert cell(table, "shape", "latency, batch of 1 (ms)", "ours") == "1.50 [-4.85, 7.85], n=2"
    assert cell(table, "shape", "latency, batch of 1 (ms)", "teacher") == "2.00 [2.00, 2.00], n=2"
    assert cell(table, "shape", "mask IoU ↑", "teacher") == "reference"
    assert cell(table, "texture", "L1 ↓", "ours") == "0.125, n=1"
    assert cell(table, "texture", "Fréchet distance ↓", "ours") == "7.00, n=1"
    assert cell(table, "shape", "Fréchet distance ↓", "ours") == "not measured"
    assert ("texture", "mask IoU ↑") not in table.text.index
    assert any("12 steps, seeds 0, 1" in note and "a machine" in note for note in table.notes)


def test_the_published_student_has_its_known_size_without_a_run(store: run_store.Store) -> None:
    table = mnist_kd_figures.compression(store)
    assert cell(table, "shape", "parameters", "paper's student") == "2,101,955 (2102.0× larger)"
    assert cell(table, "background", "parameters", "paper's student") == "2,101,955"  # no teacher to compare with


def test_gaps_of_a_table_are_numbered_by_their_commands(store: run_store.Store) -> None:
    table = mnist_kd_figures.compression(store)
    gap = cell(table, "background", "L1 ↓", "ours")
    number = int(re.fullmatch(r"no finished run \[(\d+)\]", gap)[1])
    assert table.commands[number - 1] == "python experiments/mnist_kd.py --mechanism background"
    assert cell(table, "background", "parameters", "teacher") == gap
    html = table._repr_html_()
    assert f"[{number}] no finished run; this command makes it: <code>{table.commands[number - 1]}</code>" in html
    theirs = table.cells.query("model == \"paper's student\" and metric == 'final/iou'")["command"].item()
    assert theirs == "python experiments/mnist_kd.py --profile paper --mechanism shape"


def test_runs_of_the_paper_profile_fill_the_papers_column_only(
    monkeypatch: pytest.MonkeyPatch, store: run_store.Store, finished: pd.DataFrame
) -> None:
    published = view.latest(finished, "double_colored", "texture").assign(profile="paper")
    small = mnist_kd_figures.compression(store)
    monkeypatch.setattr(view, "finished_runs", lambda *_: published.assign(**{"final/parameters": 2_101_955.0}))
    table = mnist_kd_figures.compression(store)
    assert cell(table, "texture", "L1 ↓", "paper's student") == "0.125, n=1"
    assert cell(table, "texture", "L1 ↓", "ours").startswith("no finished run")
    assert cell(table, "texture", "parameters", "teacher") == "1,000"
    monkeypatch.setattr(view, "finished_runs", lambda *_: published)  # not the published architecture
    assert cell(mnist_kd_figures.compression(store), "texture", "L1 ↓", "paper's student").startswith("no finished run")
    assert cell(small, "texture", "L1 ↓", "paper's student").startswith("no finished run")


def test_tables_are_saved_as_csv_and_latex(store: run_store.Store, tmp_path: Path) -> None:
    mnist_kd_figures.compression(store, "digits").save("compression", tmp_path)
    cells = pd.read_csv(tmp_path / "tables" / "compression.csv")
    ours = cells.query("mechanism == 'shape' and metric == 'final/iou' and model == 'ours'")
    assert ours[["mean", "n"]].to_numpy().tolist() == [[0.7, 1]]
    latex = (tmp_path / "tables" / "compression.tex").read_text()
    assert r"\toprule" in latex
    assert r"mnist\_kd.py -{}-dataset digits -{}-mechanism texture" in latex
    assert "stand-in: not MNIST" in latex
    assert latex.isascii()
