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


# --- runs


def test_finished_runs_are_typed_rows_of_children_only(finished: pd.DataFrame) -> None:
    assert len(finished) == 7
    assert set(finished["parent"].str.len()) == {32}
    shape = finished[finished["final/iou"] == 0.9].iloc[0]
    assert shape["seed"] == 1
    assert not shape["stand_in"]
    assert shape["cost/latency_ms_batch_1"] == 2.0
    assert shape["param/distill.steps"] == "12"
    assert not [column for column in finished if column.startswith(("mlflow.", "system/", "loss/"))]


def test_an_unknown_experiment_has_no_runs_but_the_columns(store: run_store.Store) -> None:
    none = view.finished_runs(store, "never_run")
    assert none.empty
    assert view.latest(none, "double_colored", "shape").empty


def test_latest_takes_the_newest_of_each_seed_within_one_setting(finished: pd.DataFrame) -> None:
    chosen = view.latest(finished, "double_colored", Mechanism.SHAPE)
    assert chosen["seed"].tolist() == [0, 1]
    assert chosen["final/iou"].tolist() == [0.8, 0.9]  # not the superseded, the failed or the 99-step run


@pytest.mark.parametrize(
    ("present", "chosen"), [(("smoke", "quick", "full"), "full"), (("quick", "paper"), "paper"), (("smoke",), "smoke")]
)
def test_latest_prefers_the_widest_profile(finished: pd.DataFrame, present: tuple[str, ...], chosen: str) -> None:
    run = finished[finished["mechanism"] == "texture"]
    several = pd.concat([run.assign(profile=profile) for profile in present], ignore_index=True)
    assert view.latest(several, "double_colored", "texture")["profile"].tolist() == [chosen]
    assert view.latest(several, "double_colored", "texture", present[0])["profile"].tolist() == [present[0]]


def test_a_trial_with_other_settings_does_not_take_the_place_of_the_profiles_own(finished: pd.DataFrame) -> None:
    settings = finished.assign(overrides="none")
    trial = (
        view.latest(settings, "double_colored", "shape")
        .iloc[[0]]
        .assign(run_id="trial", overrides="loss.kl=0.5", start_time=pd.Timestamp("2100-01-01", tz="UTC"))
    )
    both = pd.concat([settings, trial], ignore_index=True)
    assert "trial" not in set(view.latest(both, "double_colored", "shape")["run_id"])
    assert list(view.latest(trial, "double_colored", "shape")["run_id"]) == ["trial"]


def test_an_unknown_profile_or_dataset_is_refused(store: run_store.Store, finished: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="no profile 'huge': choose one of full, paper"):
        view.latest(finished, "double_colored", "shape", "huge")
    with pytest.raises(InputError, match="no dataset 'mnist': choose one of double_colored"):
        mnist_kd_figures.figure_7(store, "mnist")


def test_metric_history_keeps_the_later_of_two_values_of_a_step(store: run_store.Store, finished: pd.DataFrame) -> None:
    run_id = finished[finished["profile"] == "smoke"]["run_id"].item()
    store.client.log_metric(run_id, "loss/pixel", 5.0, step=6)  # as a killed and continued run may do
    history = view.metric_history(store, run_id, ["loss/", "heldout/iou"])
    assert sorted(history["key"].unique()) == ["heldout/iou", "loss/pixel", "loss/total"]
    pixel = history[history["key"] == "loss/pixel"]
    assert pixel["step"].tolist() == [6, 12]
    assert pixel["value"].tolist() == [5.0, pytest.approx(1 / 12)]


@pytest.mark.parametrize(
    ("present", "shown"),
    [
        ({"digits"}, "digits"),
        ({"digits", "wildlife"}, "double_colored"),
        (set(), "double_colored"),
        ({"miniature"}, "miniature"),
        ({"miniature", "imagenet"}, "imagenet"),
    ],
)
def test_the_notebooks_show_the_digits_only_where_nothing_else_was_run(
    monkeypatch: pytest.MonkeyPatch, store: run_store.Store, present: set[str], shown: str
) -> None:
    found = [SimpleNamespace(data=SimpleNamespace(tags={"dataset": name})) for name in sorted(present)]
    monkeypatch.setattr(store, "search", lambda *_: found)
    assert view.main_dataset(store) == shown


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


def test_sheets_keep_the_pixels_and_figures_are_saved_twice(tmp_path: Path) -> None:
    images = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    figure = style.sheet([style.Block({"row": images}, {"label": [7, 8, 9]})], "A title", "A caption " * 40)
    image = figure.axes[0].images[0]
    assert image.get_interpolation() == "nearest"
    assert image.get_array().shape == (4 + 4, 3 * 6 + 2, 3)
    np.testing.assert_array_equal(image.get_array()[2:6, 2:6, 0], ((images[0, 0] + 1) / 2 * 255).round().numpy())
    assert not figure.axes[0].axison
    first = style.save(figure, "a_figure", tmp_path).read_bytes()
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["a_figure.pdf", "a_figure.png"]
    assert style.save(figure, "a_figure", tmp_path).read_bytes() == first


# --- the gallery


def sheet_size(side: int) -> tuple[int, int]:
    """Height and width of four rows of five images, at twice the size, 2 pixels around each."""
    return 2 * (4 * (side + 2) + 2), 2 * (5 * (side + 2) + 2)


SIZES = {"parameters": 50, "teacher_parameters": 100, "macs": 3e6, "teacher_macs": 2e6}


def gallery_record() -> Iterator[dict[str, object]]:
    """Runs with everything that a figure is drawn from, in as few pixels as it takes."""
    params = {"distill.steps": 30, "distill.texture_steps": "None", "target_iou": 0.5, "target_l1": 0.05}
    arms = {
        "mnist_kd": ("source", ["skdcgn"]),
        "ablation_losses": ("variant", ["tinygan", "cross_entropy", "d1_kl_layers", "d2_kl_outputs", "d3_mse"]),
        "kl_convergence": ("kl", ["none", "paper"]),
        "noise_pairing": ("pairing", ["exact", "published"]),
        "imagenet_kd": ("objective", ["no_kl", "kl"]),
    }
    labels = {f"labels_{mechanism}": [20] for mechanism in Mechanism}
    for experiment, (tag, names) in arms.items():
        dataset = "miniature" if experiment == "imagenet_kd" else "double_colored"
        common = tags(dataset=dataset, stand_in=str(dataset == "miniature").lower(), classes="all")
        side = 32 if dataset == "miniature" else 8  # pixels
        images = {who: [20, 3, side, side] for who in ("teacher", "student")}
        masks = {f"mask_{who}": [20, 1, side, side] for who in images}
        group_tensors = {"counterfactuals": {**images, **masks, **labels}}
        yield {"experiment": experiment, "name": experiment, "tags": common, "tensors": group_tensors}
        for mechanism, name, seed in itertools.product(Mechanism, names, range(2 if experiment == "mnist_kd" else 1)):
            steps = (2, 10, 23, 30) if mechanism is Mechanism.SHAPE and experiment != "mnist_kd" else (30,)
            samples = {"labels": [20], **{key: [20, mechanism.channels, side, side] for key in images}}
            metrics = {"iou": 0.5 + seed / 10, "l1": 0.1, "noise_energy": 1.0, "noise_response": 0.5, "seen_l1": 0.1}
            yield {
                "experiment": experiment,
                "name": f"{experiment} {mechanism} {name} {seed}",
                "parent": experiment,
                "tags": {**common, "mechanism": mechanism.value, "seed": seed, tag: name},
                "params": params,
                "metrics": {f"final/{key}": value for key, value in {**metrics, **SIZES}.items()},
                "history": {key: [[2, 0.2], [30, 0.1]] for key in ("heldout/iou", "heldout/l1", "loss/total")},
                "tensors": {"samples": samples} if experiment in ("mnist_kd", "imagenet_kd") else {},
                "images": {f"{mechanism}/teacher over student": (steps, *sheet_size(side))},
            }


def test_every_figure_of_a_gallery_is_drawn(tmp_path: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    filled = run_store.open_store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    ids = set(record.add(filled, gallery_record()).values())
    keys = ("2", "6", "6 on MNIST", "7", "11", "12", "13", "14", "15", "15 on MNIST", "16")
    keys += ("learning curves", "noise pairing", "objectives", "convergence")
    for key in keys:
        for name, figure in gallery.FIGURES[key](filled).items():
            assert not style.is_gap(figure), name
            assert style.cited(figure), name
            assert set(style.cited(figure)) <= ids, name


def test_small_copies_are_small(store: run_store.Store, tmp_path: Path) -> None:
    figure = mnist_kd_figures.learning_curves(store)[Mechanism.SHAPE]
    style.save_small(figure, tmp_path / "small.png")
    with Image.open(tmp_path / "small.png") as picture:
        assert picture.mode == "P"
        assert picture.width == 1100
    assert (tmp_path / "small.png").stat().st_size < 60_000


def test_deleting_a_run_shows_the_gap(tmp_path: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    filled = run_store.open_store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    ids = record.add(filled, (run for run in gallery_record() if run["experiment"] == "mnist_kd"))
    assert not any(style.is_gap(figure) for figure in gallery.FIGURES["7"](filled).values())
    for seed in range(2):
        filled.client.delete_run(ids[f"mnist_kd texture skdcgn {seed}"])
    assert [style.is_gap(figure) for figure in gallery.FIGURES["7"](filled).values()] == [False, True, False]


def test_a_shown_figure_names_its_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(style.OUTPUT_VARIABLE, str(tmp_path))
    sheet = style.sheet([style.Block({"row": torch.zeros(2, 1, 4, 4)}, {})], 'A "title"', "A caption")
    few = style.show({"few": style.cite(sheet, ["a" * 32, "b" * 32, "a" * 32])}).data
    assert '<figure id="few">' in few
    assert "runs <code>aaaaaaaa</code> <code>bbbbbbbb</code>" in few
    assert 'alt="A &quot;title&quot;"' in few
    many = style.show({"many": style.cite(sheet, [f"{number:032}" for number in range(9)])}).data
    assert "<summary>9 runs</summary>" in many
    gap = style.gap("A title", "python it.py")
    assert style.cited(gap) == []
    assert "<figcaption></figcaption>" in style.show({"gap": gap}).data
    assert sorted(path.name for path in (tmp_path / "figures").iterdir())[:2] == ["few.pdf", "few.png"]


# --- tables


def test_tables_of_one_store_do_not_share_their_styles(store: run_store.Store) -> None:
    pages = [mnist_kd_figures.compression(store, dataset)._repr_html_() for dataset in ("double_colored", "digits")]
    first, second = ({*re.findall(r"#T_(\w+?)_row", page)} for page in pages)
    assert first
    assert not first & second


def test_listings_escape_and_hide() -> None:
    cells = pd.DataFrame({"a & b": ["x < y | z"], "number": [1.5], "mark": ["m"]})
    listing = tables.Listing("A title", cells, ("A note",), {"mark": lambda text: f"<b>{text}</b>"}, ("number",))
    page = listing._repr_html_()
    assert "x &lt; y | z" in page
    assert "<b>m</b>" in page
    assert "number" not in page
    assert listing.to_markdown().splitlines() == ["| a & b | mark |", "| --- | --- |", "| x < y \\| z | m |"]
    assert r"a \& b" in listing.to_latex()


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


# --- notebooks and report


@pytest.mark.parametrize("path", sorted(ANALYSIS.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None and not cell.metadata for cell in code)


@pytest.fixture(scope="module")
def output(store: run_store.Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The notebooks, rendered once from the store made by hand."""
    folder = tmp_path_factory.mktemp("rendered") / "output"
    assert render.render(render.Config(store.uri, folder)) == folder / "report.html"
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
    assert "Finished runs by profile: 6 at quick, 1 at smoke." in page
    assert "Runs by commit of the code that made them:" in page


def test_rendering_leaves_figures_and_tables_and_nothing_else(output: Path) -> None:
    names = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    stems = ["figure_7a_shape", "figure_7b_texture", "figure_7c_background", "figure_6_mnist", "figure_11"]
    stems += [f"learning_curve_{mechanism}" for mechanism in Mechanism]
    drawn = {f"figures/{stem}.{suffix}" for stem in stems for suffix in ("png", "pdf")}
    assert names >= {"report.html", "tables/compression.csv", "tables/compression.tex"} | drawn
    figures_, tables_ = ({name for name in names if name.startswith(folder)} for folder in ("figures/", "tables/"))
    assert names == {"report.html"} | figures_ | tables_
    assert {Path(name).suffix for name in figures_} == {".png", ".pdf"}
    assert {Path(name).suffix for name in tables_} == {".csv", ".tex"}
    assert sorted(path.name for path in output.iterdir()) == ["figures", "report.html", "tables"]


def test_a_failing_cell_is_named_and_the_old_report_stays(store: run_store.Store, tmp_path: Path) -> None:
    broken = tmp_path / "broken.ipynb"
    cells = [new_markdown_cell("# Broken"), new_code_cell("fine = 1"), new_code_cell("wrong = 1 / 0\nprint(wrong)")]
    nbformat.write(new_notebook(cells=cells), broken)
    report = tmp_path / "output" / "report.html"
    report.parent.mkdir()
    report.write_text("the old one")
    with pytest.raises(InputError, match=r"broken\.ipynb fails in cell 3 \(`wrong = 1 / 0`\): ZeroDivisionError"):
        render.render(render.Config(store.uri, report.parent), [broken])
    assert report.read_text() == "the old one"
    assert [path.name for path in report.parent.iterdir()] == ["report.html"]


def test_analysis_reads_the_store_through_tracking_alone() -> None:
    for path in sorted(ANALYSIS.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] in ("mlflow", "experiments")], path
