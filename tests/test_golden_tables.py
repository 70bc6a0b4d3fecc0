"""The tables of a small committed record of runs, against committed text: what a reader sees must not change unseen.

`SKDCGN_WRITE_GOLDEN=1 pytest tests/test_golden_tables.py` writes the text anew, for the change to be looked at in git.
"""

import os
import shutil
from pathlib import Path

import pytest
from record import add, read

from analysis.report import claims, gallery
from analysis.report.verdicts import Evidence
from skdcgn.runs import store as run_store

GOLDEN = Path(__file__).parent / "golden"
TABLES = ("claims", "compression", "convergence", "ablation_verdicts")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> tuple[run_store.Store, dict[str, str]]:
    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    shutil.copy(empty_store, database)
    store = run_store.open_store(f"sqlite:///{database}")
    return store, add(store, read(GOLDEN / "runs.json"))


def compare(text: str, name: str) -> None:
    path = GOLDEN / name
    if os.environ.get("SKDCGN_WRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_what_they_were(recorded: tuple[run_store.Store, dict[str, str]], tmp_path: Path, name: str) -> None:
    store, ids = recorded
    gallery.TABLES[name](store).save(name, tmp_path)
    for suffix in ("csv", "tex"):
        text = (tmp_path / "tables" / f"{name}.{suffix}").read_text(encoding="utf-8")
        for run, run_id in ids.items():  # ids differ from store to store
            text = text.replace(run_id[:8], f"<{run}>")
        compare(text, f"{name}.{suffix}")


def test_the_claims_table_of_the_readme_is_what_it_was(recorded: tuple[run_store.Store, dict[str, str]]) -> None:
    compare(claims.markdown(Evidence(recorded[0]), GOLDEN) + "\n", "claims.md")
