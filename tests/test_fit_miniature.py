"""The experiment that fits the miniature, part by part, as runs."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from experiments import fit_miniature
from skdcgn.cgn.miniature import FitConfig, measure_statistics
from skdcgn.configs.cgn import FITTED
from skdcgn.recipes import cgns
from skdcgn.runs.lifecycle import carry_out
from skdcgn.runs.store import Store


@pytest.mark.data
def test_the_script_fits_every_part_once(
    store: Store, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgns, "measure_statistics", partial(measure_statistics, images=10))
    config = fit_miniature.Config("smoke", FitConfig(2, 2, 2, 2, batch_size=8), per_class=2)
    scores = {"biggan_GT_l1", "f_shape_l1", "f_text_l1", "f_bg_l1", "shape_iou", "saliency_iou"}
    fitted = carry_out(fit_miniature.plan(config)).loc["all"]
    assert scores <= set(fitted.index)
    runs = store.runs("fit_miniature")
    assert {run.tags["part"] for run in runs} == {"all", *FITTED}
    assert all(run.status == "FINISHED" for run in runs)

    out = tmp_path / "out.safetensors"
    written = carry_out(fit_miniature.plan(replace(config, out=out))).loc["all"]
    assert written[[*scores]].equals(fitted[[*scores]])
    assert len(store.runs("fit_miniature")) == len(runs) + 1  # put together again, of the same parts
    with store.artifact(fitted["run_id"], out.with_stem("miniature_cgn").name) as path:
        kept = load_file(path)
    assert all(torch.equal(tensor, kept[key]) for key, tensor in load_file(out).items())
