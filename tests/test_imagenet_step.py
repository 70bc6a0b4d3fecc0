"""The benchmark of ImageNet's sizes: what it reports, and when storing pays."""

import csv
import math
from pathlib import Path

import pytest

from benchmarks import imagenet_step
from benchmarks.imagenet_step import Config, trade
from benchmarks.timing import Machine


def test_storing_pays_beyond_the_crossover() -> None:
    seconds = {"teacher": 0.03, "student step": 0.01, "read": 0.001, "write": 0.002}
    measured = trade(seconds)
    assert measured["crossover_epochs"] == pytest.approx(0.032 / 0.029)
    assert measured["hours_fresh"] == pytest.approx(30e6 * 0.04 / 3600)
    assert measured["hours_stored"] == pytest.approx((30e6 * 0.011 + 1e6 * 0.032) / 3600)

    def total(epochs: float, stored: bool) -> float:
        step, once = seconds["student step"], seconds["teacher"] + seconds["write"]
        return epochs * (step + seconds["read"]) + once if stored else epochs * (step + seconds["teacher"])

    crossover = measured["crossover_epochs"]
    assert total(crossover, True) == pytest.approx(total(crossover, False))
    assert total(crossover + 1, True) < total(crossover + 1, False)
    assert math.isinf(trade(seconds | {"read": 0.03})["crossover_epochs"])


@pytest.mark.parametrize("mechanism", ["shape", "texture"])
def test_it_measures_the_miniature(tmp_path: Path, mechanism: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "step.csv"
    config = Config(mechanism, "miniature", 4, repeats=1, warmup=1, stored=4, out=out, runtime=Machine(threads=1))
    rows = imagenet_step.main(config)
    assert [row["what"] for row in rows] == ["teacher", "student step", "read", "write"]
    for row in rows:
        assert row["images_per_second"] > 0
        assert row["mechanism"] == mechanism
        assert row["peak_memory_gib"] > 0.1
    for row in rows[:2]:
        assert row["gflop_per_image"] > 0
        assert row["share_of_peak"] > 0
    # The teacher's multiplications are those of a forward pass, the student's of forward and backward.
    assert rows[0]["gflop_per_image"] == pytest.approx({"shape": 0.0503, "texture": 0.0176}[mechanism], rel=0.01)
    with out.open() as file:
        assert [row["what"] for row in csv.DictReader(file)] == ["teacher", "student step", "read", "write"]
    assert "crossover_epochs" in capsys.readouterr().out
