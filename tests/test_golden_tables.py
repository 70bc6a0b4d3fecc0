"""The tables of a small committed record of runs, against committed text: what a reader sees must not change unseen.

`SKDCGN_WRITE_GOLDEN=1 pytest tests/test_golden_tables.py` writes the text anew, for the change to be looked at in git.
"""

import os
import shutil
from pathlib import Path

import pytest
from record import add, read

from analysis.frame.view import View
from analysis.report import claims, gallery
from skdcgn.runs.store import open_store

GOLDEN = Path(__file__).parent / "golden"
TABLES = ("claims", "compression", "convergence", "ablation_verdicts")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> tuple[View, dict[str, str]]:
    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    shutil.copy(empty_store, database)
    store = open_store(f"sqlite:///{database}")
    ids = add(store, read(GOLDEN / "runs.json"))
    return View(store), ids


def compare(text: str, name: str) -> None:
    path = GOLDEN / name
    if os.environ.get("SKDCGN_WRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_what_they_were(recorded: tuple[View, dict[str, str]], tmp_path: Path, name: str) -> None:
    view, ids = recorded
    gallery.TABLES[name](view).save(name, tmp_path)
    for suffix in ("csv", "tex"):
        text = (tmp_path / "tables" / f"{name}.{suffix}").read_text(encoding="utf-8")
        for run, run_id in ids.items():  # ids differ from store to store
            text = text.replace(run_id[:8], f"<{run}>")
        compare(text, f"{name}.{suffix}")


def test_the_claims_table_of_the_readme_is_what_it_was(recorded: tuple[View, dict[str, str]]) -> None:
    compare(claims.markdown(recorded[0], GOLDEN) + "\n", "claims.md")
