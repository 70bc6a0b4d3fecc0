"""The invariant ensemble's experiment at smoke scale, and its table and figure."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analysis import baseline_cgn_tinygan as baseline_cgn_tinygan_figures
from analysis import imagenet_ood as analysis
from analysis.frame import style
from analysis.frame.view import View
from experiments import baseline_cgn_tinygan, imagenet_ood
from skdcgn.cgn import miniature
from skdcgn.cgn import teachers as cgn_teachers
from skdcgn.cgn.imagenet import MINIATURE, ImageNetCGN
from skdcgn.classifiers.networks import HEADS
from skdcgn.errors import InputError
from skdcgn.randomness import stream
from skdcgn.runs import store as run_store

SMOKE = imagenet_ood.DEFAULTS["smoke"]


@pytest.fixture(autouse=True)
def random_miniature(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packaged miniature with random weights, and no data: nothing here looks at what pictures show."""
    path = tmp_path_factory.getbasetemp() / "random_miniature.safetensors"
    if not path.exists():
        miniature.save_miniature(path, ImageNetCGN(MINIATURE, stream(0, "miniature")), {})
    monkeypatch.setattr(cgn_teachers, "MINIATURE_FILE", path)
    monkeypatch.delenv("SKDCGN_DATA_DIR", raising=False)
    monkeypatch.setenv("SKDCGN_CACHE_DIR", str(path.parent / "no cache"))
    monkeypatch.setenv("SKDCGN_OFFLINE", "1")


def _check(store: run_store.Store, results: pd.DataFrame, sources: tuple[str, ...]) -> None:
    assert results.index.to_list() == [(source, 0) for source in sources]
    for head in HEADS:
        assert results[f"top1_{head}"].between(0, 1).all()
        gap = results[f"in9_mixed_same_{head}"] - results[f"in9_mixed_rand_{head}"]
        assert results[f"bg_gap_{head}"].to_list() == pytest.approx(gap.to_list())
        assert results[f"cue_accuracy_{head}"].between(0, 1).all()
    children = [run for run in store.search("imagenet_ood") if "mlflow.parentRunId" in run.data.tags]
    assert {run.data.tags["source"] for run in children} == set(sources)
    for run in children:
        assert run.info.status == "FINISHED"
        assert run.data.tags["stand_in"] == "true"
        assert run.data.tags["dataset"] == "miniature"
        assert "composites" in run.data.tags["images"]
        assert run.data.tags["overrides"] == "none"
        assert ("loss/texture" in run.data.metrics) == (run.data.tags["source"] != "original")
        with store.artifact(run.info.run_id, "ensemble.safetensors") as path:
            assert path.stat().st_size > 1e5


def test_experiment_table_and_figure(
    store: run_store.Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert style.is_gap(analysis.figure(View(store)))
    empty = analysis.table(View(store))
    assert empty.empty
    assert "python experiments/imagenet_ood.py --sources cgn" in empty.commands

    config = replace(SMOKE, sources=("original", "cgn"))
    _check(store, imagenet_ood.main(config), config.sources)
    capsys.readouterr()
    imagenet_ood.main(config)
    assert capsys.readouterr().out.count("finished before") == 2
    assert len(store.search("imagenet_ood")) == 3

    table = analysis.table(View(store))
    assert "stand-in: a miniature" in table.title
    assert "smoke test" in table.title
    text = table.text
    assert text.loc[("IN-9 mixed-rand ↑", "all heads"), "ResNet-50, published"] == "78.9"
    assert text.loc[("BG gap ↓", "shape head"), "+ CGN"].endswith("n=1")
    assert text.loc[("BG gap ↓", "shape head"), "+ SKDCGN"].startswith("no finished run")
    assert len(table.commands) == 2
    table.save("imagenet_ood", tmp_path)
    figure = analysis.figure(View(store))
    assert len(style.cited(figure)) == 2
    assert style.save(figure, "imagenet_ood", tmp_path).stat().st_size > 10_000
    sizes = analysis.fidelity(View(store))
    assert sizes.empty
    assert sizes.commands


@pytest.mark.slow
def test_every_source(store: run_store.Store) -> None:
    _check(store, imagenet_ood.main(SMOKE), SMOKE.sources)
    baseline_cgn_tinygan.main(replace(baseline_cgn_tinygan.DEFAULTS["smoke"], stage="counterfactuals"))
    sizes = analysis.fidelity(View(store))
    text = sizes.text
    assert "stand-in" in sizes.title
    assert text.loc[("counterfactuals", "Inception score ↑"), baseline_cgn_tinygan_figures.SOURCES["skdcgn"]].endswith(
        "n=1"
    )
    assert text.loc[("texture", "parameters"), baseline_cgn_tinygan_figures.SOURCES["cgn"]] != "not measured"
    assert text.loc[("shape", "mask IoU with the CGN's ↑"), baseline_cgn_tinygan_figures.SOURCES["cgn"]] == "reference"
    assert not sizes.commands


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: {"in9": folder}, "--imagenet, --in9 and --cue-conflict go together"),
        (lambda folder: {"teacher": folder / "cgn.pth"}, "leave --teacher out"),
        (lambda folder: {"training": replace(SMOKE.training, pretrained=True)}, "--backbone is missing"),
        (lambda folder: {"imagenet": folder, "in9": folder, "cue_conflict": folder}, "There is no folder"),
    ],
)
def test_bad_input_is_one_sentence(
    store: run_store.Store, tmp_path: Path, change: Callable[[Path], dict], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        imagenet_ood.main(replace(SMOKE, sources=("original",), **change(tmp_path)))


def test_full_needs_the_real_weights(store: run_store.Store) -> None:
    with pytest.raises(InputError, match=r"python -m skdcgn\.weights"):
        imagenet_ood.main(imagenet_ood.DEFAULTS["full"])
