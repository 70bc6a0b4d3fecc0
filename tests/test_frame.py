"""The frame of the analysis: which runs are chosen, how numbers are written and judged, and how figures look."""

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from record import add

from analysis.frame import caption, judge, style, table, view
from analysis.frame.output import OUTPUT_VARIABLE
from analysis.frame.table import Quantity
from analysis.frame.view import View
from skdcgn.errors import InputError
from skdcgn.runs import store as run_store

IOU = Quantity("mask IoU ↑", "final/iou", ".3f")

Record = list[dict[str, Any]]
Make = Callable[[Record], run_store.Store]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Make:
    """Make stores of records."""

    def made(record: Record) -> run_store.Store:
        database = tmp_path_factory.mktemp("store") / "mlflow.db"
        shutil.copy(empty_store, database)
        store = run_store.open_store(f"sqlite:///{database}")
        add(store, record)
        return store

    return made


def student(name: str, seed: int, mechanism: str = "shape", steps: int = 12, **changes: Any) -> dict[str, Any]:
    """A run of a student, with the seed and the mechanism as its metric."""
    tags = {"kind": "student", "profile": "quick", "dataset": "double_colored", "mechanism": mechanism, "seed": seed}
    tags |= {"teacher": "a teacher", "teacher_sha256": "abc", "stand_in": False, "hardware": "a machine"}
    params = {"distill.steps": steps, "distill.texture_steps": "None", "seed": seed, "training.seed": seed}
    params |= {"teacher.dataset": name, "runtime.device": name, **changes.pop("params", {})}
    run = {"experiment": "mnist_kd", "name": name, "params": params, "metrics": {"final/iou": 0.8 + seed / 10}}
    return run | changes | {"tags": tags | changes.get("tags", {})}


STUDENTS = [
    student("superseded", 0),
    student("another setting", 2, steps=99),
    student("first", 0),
    student("second", 1, history={"heldout/iou": [[6, 0.4], [12, 0.9]], "loss/total": [[6, 0.5]]}),
    student("texture", 0, "texture"),
    student("tiny", 0, tags={"profile": "smoke"}),
    student("digits", 0, tags={"dataset": "digits", "stand_in": True}),
    student("trial", 0, tags={"overrides": "loss.kl=0.5"}, params={"loss.kl": 0.5}),
]


@pytest.fixture(scope="module")
def shown(make: Make) -> View:
    return View(make(STUDENTS))


def names(runs: pd.DataFrame) -> list[str]:
    return runs["name"].tolist()


# --- the choice of runs


def test_finished_runs_are_typed_rows(shown: View) -> None:
    runs = shown.finished("mnist_kd")
    assert names(runs) == [run["name"] for run in reversed(STUDENTS)]
    second = runs.set_index("name").loc["second"]
    assert second["seed"] == 1
    assert not second["stand_in"]
    assert second["final/iou"] == 0.9
    assert second["param/distill.steps"] == "12"
    assert not [column for column in runs if column.startswith(("mlflow.", "heldout/", "loss/"))]
    assert shown.finished("mnist_kd") is runs  # read once


def test_an_experiment_without_runs_has_the_columns(shown: View) -> None:
    assert shown.finished("never_run").empty
    none = shown.chosen("never_run", {"variant": None}, kind="student", mechanism="shape")
    assert none.empty
    assert {"variant", "mechanism", "run_id"} <= set(none)
    assert shown.only("never_run") is None
    assert shown.experiments() == ["mnist_kd"]


def test_the_newest_of_each_seed_within_one_setting_is_chosen(shown: View) -> None:
    assert names(shown.chosen("mnist_kd", mechanism="shape")) == ["first", "second"]  # no trial, no other setting
    assert shown.only("mnist_kd", mechanism="shape")["name"] == "first"  # the lowest seed
    only = shown.chosen("mnist_kd", mechanism="shape", overrides="loss.kl=0.5")
    assert names(only) == ["trial"]  # where there is nothing else


@pytest.mark.parametrize(
    ("present", "chosen"), [(("smoke", "quick", "full"), "full"), (("quick", "paper"), "paper"), (("smoke",), "smoke")]
)
def test_the_widest_profile_is_shown(make: Make, present: tuple[str, ...], chosen: str) -> None:
    store = make([student(profile, 0, tags={"profile": profile}) for profile in present])
    assert names(View(store).chosen("mnist_kd")) == [chosen]
    assert names(View(store, present[0]).chosen("mnist_kd")) == [present[0]]
    assert View(store, "paper" if chosen != "paper" else "full").chosen("mnist_kd").empty


def test_cases_are_ordered_and_of_one_profile(make: Make) -> None:
    def arm(name: str, kl: str, mechanism: str, seed: int, **tags: str) -> dict[str, Any]:
        return student(name, seed, mechanism, tags={"kl": kl, **tags})

    runs = [
        arm("none t", "none", "texture", 0),
        arm("paper s1", "paper", "shape", 1),
        arm("paper s0", "paper", "shape", 0),
        arm("none s0", "none", "shape", 0),
        arm("other s0", "other", "shape", 0),
        arm("full", "none", "background", 0),
    ]
    by = {"mechanism": ["shape", "texture", "background"], "kl": ["none", "paper"]}
    store = make(runs)
    chosen = View(store).chosen("mnist_kd", by)
    assert names(chosen) == ["none s0", "paper s0", "paper s1", "none t", "full"]
    assert names(View(store).chosen("mnist_kd", {"kl": None}, mechanism="shape"))[0] == "other s0"  # newest first
    wide = make([*runs, arm("wide", "paper", "shape", 0, profile="full")])
    assert names(View(wide).chosen("mnist_kd", by)) == ["wide"]
    split = view.split(chosen, "kl", ["paper", "none", "nothing"])
    assert [len(rows) for rows in split.values()] == [2, 3, 0]


def test_arms_that_are_compared_share_what_must_be_alike(make: Make) -> None:
    def arm(name: str, kl: str, width: int, weight: int = 0) -> dict[str, Any]:
        return student(name, 0, tags={"kl": kl}, params={"width": width, "weight": weight})

    small, large = ([arm(f"none {width}", "none", width), arm(f"kl {width}", "paper", width, 1)] for width in (8, 16))
    by = {"kl": ["none", "paper"]}
    store = make([*small, *large])
    assert names(View(store).chosen("mnist_kd", by, alike="width|distill")) == ["none 16", "kl 16"]
    store = make([arm("none", "none", 16), arm("old kl", "paper", 8), arm("newest", "none", 32)])
    assert names(View(store).chosen("mnist_kd", by, alike="width")) == ["newest"]
    assert names(View(store).chosen("mnist_kd", by)) == ["newest", "old kl"]


@pytest.mark.parametrize(
    ("present", "title"),
    [
        (["digits"], "digits"),
        (["digits", "wildlife"], "double_colored"),
        ([], "double_colored"),
        (["miniature"], "miniature"),
        (["miniature", "imagenet"], "imagenet"),
    ],
)
def test_a_stand_in_is_shown_only_where_nothing_else_was_run(make: Make, present: list[str], title: str) -> None:
    store = make([student(name, 0, tags={"dataset": name}) for name in present])
    assert View(store).dataset("mnist_kd") == title
    asked = View(store, dataset="wildlife").dataset("mnist_kd")
    assert asked == (title if set(present) & {"miniature", "imagenet"} else "wildlife")


def test_an_unknown_profile_or_dataset_is_refused(shown: View) -> None:
    with pytest.raises(InputError, match="no profile 'huge': choose one of full, paper"):
        View(shown.store, "huge")
    with pytest.raises(InputError, match="no dataset 'mnist': choose one of double_colored"):
        View(shown.store, dataset="mnist")


def test_records_of_any_status_put_plain_settings_first(make: Make) -> None:
    study = {"kind": "study"}
    changed = {**study, "overrides": "search.trials=3"}
    store = make([student("plain", 0, tags=study), student("changed", 0, tags=changed)])
    add(store, [student("smoke", 0, tags={**study, "profile": "smoke"})], "RUNNING")
    assert [run.name for run in View(store).records("mnist_kd", kind="study")] == ["plain", "changed"]
    assert [run.name for run in View(store, "smoke").records("mnist_kd", kind="study")] == ["smoke"]
    assert View(store).records("mnist_kd", kind="trial") == []


def test_history_has_the_tags_of_its_runs(shown: View) -> None:
    history = shown.history(shown.chosen("mnist_kd", mechanism="shape"), "heldout/", "loss/total")
    assert history["key"].tolist() == ["heldout/iou", "heldout/iou", "loss/total"]
    assert history[["seed", "step", "value"]].to_numpy().tolist() == [[1, 6, 0.4], [1, 12, 0.9], [1, 6, 0.5]]
    assert shown.history(shown.chosen("mnist_kd", mechanism="shape"), "heldout/l1").empty


def test_held_out_images_are_those_nearest_to_an_epoch(make: Make) -> None:
    def pixels(value: int) -> torch.Tensor:
        return torch.full((10, 3, 8, 8), value, dtype=torch.uint8)

    kept = {f"heldout_{step:07d}": {"teacher": pixels(0), "student": pixels(step)} for step in (20, 40, 255)}
    shown = View(make([student("masks", 0, steps=300, tensors=kept), student("none", 1, steps=300)]))
    run, without = (row for _, row in shown.chosen("mnist_kd").iterrows())
    for epoch, step in ((2, 20), (3, 20), (10, 40), (30, 255)):  # of 30: ten steps each; the earlier of two as near
        teacher, student_images = shown.held_out(run, epoch)
        assert teacher.shape == (10, 3, 8, 8)
        assert teacher.unique().item() == -1
        assert student_images.unique().item() == pytest.approx(step / 127.5 - 1)
    with pytest.raises(InputError, match="kept no held-out images"):
        shown.held_out(without, 30)


def test_commands_leave_out_what_scripts_do_by_default(shown: View) -> None:
    store = shown.store
    assert shown.command("mnist_kd") == "python experiments/mnist_kd.py"
    shape = shown.command("mnist_kd", mechanism="shape", dry_run=None)
    assert shape == "python experiments/mnist_kd.py --mechanism shape"
    asked = View(store, "full", "wildlife").command("mnist_kd", mechanism="shape")
    assert asked == "python experiments/mnist_kd.py --profile full --dataset wildlife --mechanism shape"
    assert View(store, "quick").command("mnist_kd", profile="paper") == "python experiments/mnist_kd.py --profile paper"
    assert View(store, "full").command("ood_robustness").endswith("--profile full --datasets double_colored")
    assert shown.command("ood_robustness", sources="cgn") == "python experiments/ood_robustness.py --sources cgn"


# --- cells and tables


def test_a_cell_is_a_number_or_says_what_is_missing(shown: View) -> None:
    runs = shown.chosen("mnist_kd", mechanism="shape")
    full = table.cell(runs, IOU, "a command", model="ours")
    # 0.85 ± 12.706 * 0.0707 / sqrt(2): Student's t with one degree of freedom
    assert full["text"] == "0.850 [0.215, 1.485], n=2"
    assert full["mean"] == pytest.approx(0.85)
    assert (full["model"], full["n"], full["command"]) == ("ours", 2, "")
    empty = table.cell(runs.iloc[:0], IOU, "a command")
    assert (empty["text"], empty["n"], empty["command"]) == ("no finished run", 0, "a command")
    other = table.cell(runs, IOU._replace(metric="final/ssim"), "a command", "not at hand")
    assert (other["text"], other["command"]) == ("not at hand", "")
    counted = table.number([3e6, 3e6], Quantity("MACs", "final/macs", ".1f", 1e-6, counted=True))
    assert (counted["text"], counted["n"]) == ("3.0", 2)
    assert table.number([0.5], IOU)["text"] == "0.500, n=1"
    assert table.words("reference", 0.5)["mean"] == 0.5


def made_table(shown: View) -> table.Table:
    runs = shown.chosen("mnist_kd", mechanism="shape")
    cells = [
        table.cell(rows, IOU, command, mechanism="shape", model=model)
        for model, rows, command in (("ours", runs, ""), ("theirs", runs.iloc[:0], "python it.py --a-flag"))
    ]
    return table.Table.of("A title", cells, ["A note"])


def test_gaps_of_a_table_are_numbered_by_their_commands(shown: View) -> None:
    made = made_table(shown)
    assert made.text.loc[("shape", IOU.title), "theirs"] == "no finished run [1]"
    assert made.commands == ["python it.py --a-flag"]
    assert not made.empty
    html = made._repr_html_()
    assert "[1] no finished run; this command makes it: <code>python it.py --a-flag</code>" in html
    places = ["mechanism", "quantity", "model", "metric", "mean", "low", "high", "n", "text", "command"]
    assert made.cells.columns.tolist() == places


def test_tables_are_saved_as_csv_and_latex(shown: View, tmp_path: Path) -> None:
    made_table(shown).save("a_table", tmp_path)
    cells = pd.read_csv(tmp_path / "tables" / "a_table.csv")
    assert cells.loc[0, ["mean", "n"]].tolist() == [0.85, 2]
    latex = (tmp_path / "tables" / "a_table.tex").read_text()
    assert r"\toprule" in latex
    assert r"it.py -{}-a-flag" in latex
    assert latex.isascii()


def test_listings_escape_and_hide() -> None:
    cells = pd.DataFrame({"a & b": ["x < y | z"], "number": [1.5], "mark": ["m"]})
    listing = table.Listing("A title", cells, ("A note",), {"mark": lambda text: f"<b>{text}</b>"}, ("number",))
    page = listing._repr_html_()
    assert "x &lt; y | z" in page
    assert "<b>m</b>" in page
    assert "number" not in page
    assert listing.to_markdown().splitlines() == ["| a & b | mark |", "| --- | --- |", "| x < y \\| z | m |"]
    assert r"a \& b" in listing.to_latex()


# --- captions


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"dataset": "digits", "stand_in": True}, " (stand-in: not MNIST, and a teacher trained here)"),
        ({"dataset": "miniature", "stand_in": True}, " (stand-in: a miniature at 32x32, not ImageNet)"),
        ({"stand_in": True}, " (stand-in teacher)"),
        ({"profile": "smoke"}, " (smoke test, a few training steps)"),
        ({"perceptual": "none"}, " (no perceptual loss: VGG16 was not available)"),
        ({}, ""),
    ],
)
def test_a_title_says_what_is_less_than_the_papers_experiment(shown: View, changes: dict[str, Any], note: str) -> None:
    runs = shown.chosen("mnist_kd", mechanism="shape").assign(**changes)
    assert caption.title("A title", runs, runs.iloc[:0], runs) == f"A title{note}"
    assert caption.title("A title", runs.iloc[0], dataset="wildlife") == f"A title, Wildlife MNIST{note}"


def test_provenance_names_runs_steps_seeds_teacher_and_hardware(shown: View) -> None:
    runs = shown.chosen("mnist_kd", mechanism="shape")
    first, second = runs["run_id"].str[:8]
    assert caption.provenance(runs, "all classes") == (
        f"Runs {first}, {second}, profile quick, 12 steps, all classes, seeds 0, 1; teacher: a teacher; on a machine."
    )
    stand_in = runs.iloc[0].copy()
    stand_in["stand_in"] = True
    text = caption.provenance(stand_in)
    assert text.startswith(f"Run {first}, profile quick, 12 steps, seed 0; teacher: a teacher (stand-in)")
    many = pd.concat([runs] * 4)
    assert caption.provenance(many).startswith("8 runs, profile quick")
    plain = runs.assign(teacher="none", hardware=None).drop(columns="param/distill.steps")
    assert caption.provenance(plain, runs=False) == "Profile quick, seeds 0, 1."


def test_origins_say_once_what_cases_share(shown: View) -> None:
    runs = shown.chosen("mnist_kd", mechanism="shape")
    cases = {"A": runs, "B": runs.iloc[:0], "C": runs, "D": runs.iloc[:1]}
    assert caption.origins(cases, lambda of_case: [f"{len(of_case)} images"]) == [
        "A, C: profile quick, 12 steps, 2 images, seeds 0, 1; teacher: a teacher; on a machine.",
        "D: profile quick, 12 steps, 1 images, seed 0; teacher: a teacher; on a machine.",
    ]


def test_captions_write_numbers(shown: View) -> None:
    run = shown.only("mnist_kd", mechanism="shape")
    assert caption.fidelity(run, "iou", "l1") == "On the whole held-out set: mask IoU 0.800."
    assert caption.fidelity(run, "l1") == ""
    assert caption.number_range(shown.finished("mnist_kd"), "param/distill.steps") == "12 or 99"
    assert caption.number_range(shown.finished("mnist_kd"), "param/nothing") == ""


# --- the judge


@pytest.mark.parametrize(
    ("values", "side", "bound", "holds"),
    [
        ([0.8, 0.81, 0.82], "above", 0.7, True),
        ([0.8, 0.81, 0.82], "above", 0.9, False),
        ([0.8, 0.81, 0.82], "above", 0.81, None),  # 0.81 ± 4.303 * 0.01 / sqrt(3) = [0.785, 0.835]
        ([0.8, 0.81, 0.82], "above", 0.784, True),
        ([0.8, 0.81, 0.82], "above", 0.786, None),
        ([0.8, 0.81, 0.82], "below", 0.9, True),
        ([0.8, 0.81, 0.82], "below", 0.7, False),
        ([0.8], "above", 0.1, None),  # one seed decides nothing
        ([0.8, 0.81, 0.82, math.nan], "above", 0.7, True),
        ([0.5, 0.5, 0.5], "above", 0.5, None),
        ([math.nan], "above", 0.7, None),
    ],
)
def test_a_prediction_holds_where_its_whole_interval_does(
    values: list[float], side: judge.Side, bound: float, holds: bool | None
) -> None:
    assert judge.judge(values, side, bound).holds is holds


def test_a_judgment_is_written_and_named() -> None:
    better = judge.judge([0.8, 0.81, 0.82], form="+.1f", scale=100)
    assert better.text == "+81.0 [+78.5, +83.5], n=3"
    assert judge.say(better) == "higher"
    assert judge.say(judge.judge([-0.8, -0.81]), judge.comparison("l1")) == "better"
    assert judge.say(judge.judge([0.8, 0.81]), judge.comparison("iou")) == "better"
    assert judge.say(judge.judge([0.8, 0.81]), judge.comparison("noise_energy")) == "noisier"
    assert judge.say(judge.judge([-0.8, 0.81]), judge.comparison("iou")) == "no clear difference"
    assert judge.say(judge.judge([-0.8, 0.81])) == "not told apart"
    assert judge.say(judge.judge([0.8])) == "one seed only"
    assert judge.say(judge.judge([])) == "no pair of seeds"


def test_differences_are_paired_by_seed() -> None:
    measured = [("on", 2, 3.0), ("on", 0, 1.0), ("on", 1, 9.0), ("off", 0, 0.5), ("off", 2, 1.0)]
    rows = pd.DataFrame(measured, columns=["kl", "seed", "iou"])
    assert judge.difference(rows, "kl", "on", "off", "iou") == [0.5, 2.0]
    assert judge.difference(rows, "kl", "on", "off", "l1") == []


# --- figures


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


def test_rows_of_images_are_broken_into_blocks() -> None:
    blocks = style.blocks({"row": torch.zeros(12, 3, 2, 2)}, {"label": torch.arange(12)}, columns=5)
    assert [len(block.rows["row"]) for block in blocks] == [5, 5, 2]
    assert blocks[1].header == {"label": [5, 6, 7, 8, 9]}
    assert len(style.blocks({"row": torch.zeros(12, 3, 2, 2)}, {}, columns=5, limit=10)) == 2


def test_intervals_are_drawn_where_there_are_several_values() -> None:
    axes = Figure().add_subplot()
    style.intervals(axes, [0, 1, 2], [[0.8, 0.81, 0.82], [], [0.5]], 100, label="ours")
    container = axes.containers[0]
    assert container.get_label() == "ours"
    np.testing.assert_allclose(container.lines[0].get_xydata(), [[0, 81], [2, 50]])
    bars = [segment[:, 1] for segment in container.lines[2][0].get_segments()]
    np.testing.assert_allclose(bars, [[78.516, 83.484], [50, 50]], atol=1e-3)
    style.intervals(axes, [0], [[]])
    assert len(axes.containers) == 1


def test_small_copies_are_small(tmp_path: Path) -> None:
    figure, _ = style.plots(2, "A title", "A caption")
    style.save_small(figure, tmp_path / "small.png")
    with Image.open(tmp_path / "small.png") as picture:
        assert picture.mode == "P"
        assert picture.width == 1100
    assert (tmp_path / "small.png").stat().st_size < 60_000


def test_a_shown_figure_names_its_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(OUTPUT_VARIABLE, str(tmp_path))
    sheet = style.sheet([style.Block({"row": torch.zeros(2, 1, 4, 4)}, {})], 'A "title"', "A caption")
    few = style.show({"few": style.cite(sheet, ["a" * 32, "b" * 32, "a" * 32])}).data
    assert '<figure id="few">' in few
    assert "runs <code>aaaaaaaa</code> <code>bbbbbbbb</code>" in few
    assert 'alt="A &quot;title&quot;"' in few
    many = style.show({"many": style.cite(sheet, [f"{number:032}" for number in range(9)])}).data
    assert "<summary>9 runs</summary>" in many
    gap = style.gap("A title", "python it.py")
    assert style.cited(gap) == []
    assert re.search(r"<figcaption></figcaption>", style.show({"gap": gap}).data)
    assert sorted(path.name for path in (tmp_path / "figures").iterdir())[:2] == ["few.pdf", "few.png"]
