"""Archives of runs: what goes in comes out, nothing counts twice, and a bad file changes nothing."""

import json
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pandas as pd
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from record import Make, add
from test_commands import call
from test_sweeps import DEAD, objective, open_sweep, take

from analysis.frame.view import View
from analysis.report.export import table
from experiments.cases import cgn_case
from experiments.presets import CGNS
from skdcgn.errors import InputError
from skdcgn.recipes.sources import load_source
from skdcgn.runs.archive import bundle
from skdcgn.runs.archive.bundle import IMPORTING, ORIGIN, ORIGIN_STORE
from skdcgn.runs.archive.exports import _address, export_runs
from skdcgn.runs.archive.imports import import_runs
from skdcgn.runs.lifecycle import Terminal, state_of
from skdcgn.runs.run import Run
from skdcgn.runs.search.studies import StudyRecord, load_study
from skdcgn.runs.store import RunRecord, Store, open_store

MakeStore = Callable[[], Store]
Members = dict[str, bytes]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> MakeStore:
    """Makes empty stores, each in a folder of its own."""

    def made() -> Store:
        database = tmp_path_factory.mktemp("store") / "mlflow.db"
        shutil.copy(empty_store, database)
        return open_store(f"sqlite:///{database}")

    return made


def all_runs(store: Store, experiments: Sequence[str] = ()) -> list[RunRecord]:
    return [run for experiment in experiments or store.experiments() for run in store.runs(experiment)]


def kept(store: Store, run_id: str, folder: str = "") -> dict[str, bytes]:
    """Return all files that a run kept."""
    files = {}
    for file in store.client.list_artifacts(run_id, folder or None):
        if file.is_dir:
            files |= kept(store, run_id, file.path)
        else:
            with store.artifact(run_id, file.path) as path:
                files[file.path] = path.read_bytes()
    return files


def content(store: Store, experiments: Sequence[str] = ()) -> dict[str, Any]:
    """Return everything that a store has of its runs, by their origins, and with these in place of ids."""
    origins = {run.run_id: run.tags.get(ORIGIN, run.run_id) for run in all_runs(store, experiments)}

    def original(text: str) -> str:
        for run_id, origin in origins.items():
            text = text.replace(run_id, origin)
        return text

    found = {}
    for run_id, origin in origins.items():
        run = store.client.get_run(run_id)
        info, data, experiment = run.info, run.data, store.client.get_experiment(run.info.experiment_id)
        logged = {key: store.client.get_metric_history(run_id, key) for key in data.metrics}
        found[origin] = {
            "experiment": (experiment.name, experiment.tags.get("mlflow.note.content")),
            "info": (info.run_name, info.status, info.start_time, info.end_time),
            "tags": {key: original(data.tags[key]) for key in data.tags.keys() - {ORIGIN, ORIGIN_STORE}},
            "params": {key: original(value) for key, value in data.params.items()},
            "metrics": {key: sorted((m.step, m.timestamp, repr(m.value)) for m in of) for key, of in logged.items()},
            "latest": {key: repr(value) for key, value in data.metrics.items()},
            "inputs": sorted(str(each.to_dictionary()) for each in run.inputs.dataset_inputs),
            "kept": {name: original(data.decode("latin-1")) for name, data in kept(store, run_id).items()},
        }
    return found


# --- there and back -------------------------------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
names = st.sampled_from(["seed", "teacher", "a b", "x/y.z", "-"])
points = st.tuples(st.integers(0, 2**40), st.integers(0, 2**40), st.floats())
paths = st.sampled_from(["note.txt", "student/config.json", "student/model.safetensors", "ä b.csv", "images/x+1.png"])
described = st.fixed_dictionaries(
    {
        "experiment": st.sampled_from(["mnist_kd", "other"]),
        "status": st.sampled_from(["FINISHED", "FAILED", "KILLED", "SCHEDULED", "RUNNING"]),
        "times": st.tuples(st.integers(1, 2**40), st.integers(1, 2**40)),
        "tags": st.dictionaries(names, words, max_size=3),
        "params": st.dictionaries(names, words, max_size=3),
        "metrics": st.dictionaries(names, st.lists(points, min_size=1, max_size=4), max_size=3),
        "kept": st.dictionaries(paths, st.binary(max_size=50), max_size=3),
        "inputs": st.dictionaries(st.sampled_from(["MNIST", "digits"]), words, max_size=2),
        "parent": st.booleans(),
    }
)


def begin(store: Store, run: Mapping[str, Any], parent: str | None, folder: Path) -> str:
    """Add a run with anything that a run can have, by MLflow alone; return its id."""
    client = store.client
    run_id = client.create_run(store.experiment_id(run["experiment"], "what it is"), run["times"][0]).info.run_id
    tags = {**run["tags"], **({"mlflow.parentRunId": parent, "of": f"runs:/{parent}/student"} if parent else {})}
    client.log_batch(
        run_id,
        [Metric(key, value, when, step) for key, each in run["metrics"].items() for step, when, value in each],
        [Param(key, value) for key, value in run["params"].items()],
        [RunTag(key, value) for key, value in tags.items()],
    )
    read = [
        DatasetInput(Dataset(name, "abc", "code", source, "schema"), [InputTag("mlflow.data.context", "training")])
        for name, source in run["inputs"].items()
    ]
    client.log_inputs(run_id, read)
    for name, data in {**run["kept"], **({"teacher.csv": f"1,{parent}\n".encode()} if parent else {})}.items():
        path = folder / run_id / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        client.log_artifact(run_id, str(path), str(Path(name).parent) if "/" in name else None)
    if run["status"] in ("RUNNING", "SCHEDULED"):
        client.update_run(run_id, run["status"])
    else:
        client.set_terminated(run_id, run["status"], run["times"][1])
    return run_id


@pytest.fixture(scope="module")
def pair(fresh: MakeStore) -> tuple[Store, Store]:
    """Two stores for all examples, since to make one takes long; each example has experiments of its own."""
    return fresh(), fresh()


@settings(max_examples=8, deadline=None)
@given(st.lists(described, min_size=1, max_size=3))
def test_import_of_an_export_is_the_identity(
    pair: tuple[Store, Store], tmp_path_factory: pytest.TempPathFactory, runs: list[dict[str, Any]]
) -> None:
    (store, other), folder, ids = pair, tmp_path_factory.mktemp("archive"), []
    runs = [{**run, "experiment": f"{run['experiment']} {folder.name}"} for run in runs]
    experiments = sorted({run["experiment"] for run in runs})
    for run in runs:
        of_same = [run_id for run_id, one in zip(ids, runs, strict=False) if one["experiment"] == run["experiment"]]
        ids.append(begin(store, run, of_same[0] if run["parent"] and of_same else None, folder))
    export_runs(store, folder / "runs.zip", experiments, unfinished=True)
    import_runs(other, [folder / "runs.zip"])
    before = content(store, experiments)
    assert before.keys() == {*ids}
    for run in before.values():  # nobody is at the copy of a run
        name, status, *times = run["info"]
        run["info"] = (name, "KILLED" if status == "RUNNING" and "of" not in run["tags"] else status, *times)
    assert content(other, experiments) == before
    export_runs(store, folder / "again.zip", experiments, unfinished=True)
    assert (folder / "again.zip").read_bytes() == (folder / "runs.zip").read_bytes()


def test_imported_runs_say_where_they_come_from_and_have_their_files_here(
    digits: Store, fresh: MakeStore, tmp_path: Path
) -> None:
    """A real run: the teacher that smoke students need is found, loaded, and not trained again."""
    case = cgn_case(replace(CGNS["smoke"], dataset="digits"))
    (there,) = digits.runs(case.experiment)
    export_runs(digits, tmp_path / "runs.zip")
    store = fresh()
    import_runs(store, [tmp_path / "runs.zip"])
    (here,) = store.runs(case.experiment)
    assert here.run_id != there.run_id
    assert here.tags[ORIGIN] == there.run_id
    assert here.tags[ORIGIN_STORE] == f"{digits.uri} on {socket.gethostname()}"
    assert IMPORTING not in here.tags
    shutil.rmtree(digits.folder)
    assert state_of(case, store).status == "finished"
    assert load_source(f"runs:/{here.run_id}", store).stand_in
    # a further store names the first one, too
    export_runs(store, tmp_path / "further.zip")
    further = fresh()
    import_runs(further, [tmp_path / "further.zip"])
    assert {key: further.runs(case.experiment)[0].tags[key] for key in (ORIGIN, ORIGIN_STORE)} == {
        key: here.tags[key] for key in (ORIGIN, ORIGIN_STORE)
    }


def test_a_store_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "machine")
    assert _address(SimpleNamespace(uri="http://user:secret@host:5000/a")) == "http://host:5000/a on machine"


# --- merged ---------------------------------------------------------------------------------------------------------


def student(seed: int, iou: float = 0.5, name: str | None = None, **tags: Any) -> dict[str, Any]:
    given = {"kind": "student", "profile": "quick", "dataset": "digits", "mechanism": "shape", "seed": seed}
    return {
        "experiment": "mnist_kd",
        "name": name or f"shape {seed}",
        "tags": {**given, "stand_in": True, "teacher_sha256": "abc", "identity": f"shape{seed}", **tags},
        "params": {"distill.steps": 100, "seed": seed},
        "metrics": {"final/iou": iou, "cost/train_seconds": 1.0},
        "history": {"heldout/iou": [[0, 0.0], [100, iou]]},
        "tensors": {"samples": {"student": [2, 1, 4, 4]}},
    }


def exported(store: Store, folder: Path, name: str = "runs", **options: Any) -> Path:
    path = folder / f"{name}.zip"
    export_runs(store, path, **options)
    return path


def rows(view: View, experiment: str = "mnist_kd") -> pd.DataFrame:
    """Return what the analysis sees of an experiment, but for ids."""
    frame = view.finished(experiment).drop(columns=["run_id", ORIGIN, ORIGIN_STORE], errors="ignore")
    return frame.sort_values(["kind", "seed"]).reset_index(drop=True)[sorted(frame.columns)]


def test_the_view_of_a_merged_store_is_the_union(make: Make, fresh: MakeStore, tmp_path: Path) -> None:
    one = make([student(0), student(1), {**student(0, mechanism="texture"), "experiment": "other"}])
    two = make([student(2, 0.7), student(3, 0.9)])
    store = fresh()
    summary = import_runs(store, [exported(one, tmp_path, "one"), exported(two, tmp_path, "two")])
    assert str(summary) == "imported 5 runs of 2 experiments; 0 were there already"
    merged, parts = View(store, dataset="digits"), [View(one, dataset="digits"), View(two, dataset="digits")]
    pd.testing.assert_frame_equal(rows(merged), pd.concat(map(rows, parts), ignore_index=True))
    pd.testing.assert_frame_equal(rows(merged, "other"), rows(parts[0], "other"))
    shown = merged.chosen("mnist_kd", kind="student", mechanism="shape")
    assert shown["final/iou"].tolist() == [0.5, 0.5, 0.7, 0.9]
    histories = [view.history(view.chosen("mnist_kd", kind="student"), "heldout/") for view in (merged, *parts)]
    values = [history.sort_values(["seed", "step"])["value"].tolist() for history in histories]
    assert values[0] == [*values[1], *values[2]]
    assert all(store.load_tensors(run_id, "samples") for run_id in shown["run_id"])
    # where a run comes from is no case of its own in what is exported of the results
    assert [*table(merged.results("mnist_kd")).columns] == [*table(parts[0].results("mnist_kd")).columns]


def test_nothing_is_added_twice(make: Make, fresh: MakeStore, tmp_path: Path) -> None:
    one = make([student(0), student(1), student(2)])
    path = exported(one, tmp_path)
    store = fresh()
    import_runs(store, [path, path])
    before = content(store)
    assert len(before) == 3
    assert str(import_runs(store, [path])) == "imported 0 runs of 0 experiments; 3 were there already"
    assert content(store) == before
    # into the store that it came from, directly and by way of another one
    origin = content(one)
    import_runs(one, [path, exported(store, tmp_path, "back")])
    assert content(one) == origin
    # together with others: archives that share runs
    ids = add(one, [student(3)])
    more = import_runs(store, [exported(one, tmp_path, "more")])
    assert (more.imported.total(), more.there.total()) == (1, 3)
    assert {run.tags[ORIGIN] for run in all_runs(store)} == {*before, ids["shape 3"]}


def test_one_identity_from_two_machines_is_one_result(make: Make, fresh: MakeStore, tmp_path: Path) -> None:
    one, two = make([student(0, 0.5), student(1, 0.6)]), make([student(1, 0.61), student(2, 0.7)])
    paths = [exported(one, tmp_path, "one"), exported(two, tmp_path, "two")]
    store = fresh()
    summary = import_runs(store, paths)
    assert str(summary).splitlines() == [
        "imported 3 runs of 1 experiment; 0 were there already",
        "left out 1 run, made elsewhere with the same identity: mnist_kd 1",
    ]
    assert View(store).finished("mnist_kd").sort_values("seed")["final/iou"].tolist() == [0.5, 0.6, 0.7]
    assert import_runs(store, paths).imported == {}
    import_runs(store := fresh(), paths[::-1])  # the first one stays
    assert View(store).finished("mnist_kd").sort_values("seed")["final/iou"].tolist() == [0.5, 0.61, 0.7]
    import_runs(two, paths)
    assert View(two).finished("mnist_kd").sort_values("seed")["final/iou"].tolist() == [0.5, 0.61, 0.7]


def test_runs_that_one_store_made_again_all_come_along(make: Make, fresh: MakeStore, tmp_path: Path) -> None:
    """As `--runtime.force` makes them: the copy is as the store was, and the view takes the newest of them."""
    one = make([student(0, 0.5, "first"), student(0, 0.6, "again")])
    store, path = fresh(), exported(one, tmp_path)
    import_runs(store, [path])
    import_runs(store, [path])
    assert content(store) == content(one)
    assert View(store, dataset="digits").chosen("mnist_kd")["final/iou"].tolist() == [0.6]


def test_an_unfinished_run_elsewhere_does_not_stand_in_for_a_finished_one(
    make: Make, fresh: MakeStore, tmp_path: Path
) -> None:
    one, two = make([]), make([student(0, 0.7)])
    add(one, [student(0, 0.1)], "KILLED")
    store = fresh()
    import_runs(store, [exported(one, tmp_path, "one", unfinished=True), exported(two, tmp_path, "two")])
    assert sorted(run.status for run in all_runs(store)) == ["FINISHED", "KILLED"]
    assert View(store).finished("mnist_kd")["final/iou"].tolist() == [0.7]


def test_an_import_catches_up_with_a_run_that_has_finished_since(make: Make, fresh: MakeStore, tmp_path: Path) -> None:
    one, store = make([]), fresh()
    (run_id,) = add(one, [student(0, error="ValueError: x")], "FAILED").values()
    early = exported(one, tmp_path, "early", unfinished=True)
    import_runs(store, [early])
    one.client.delete_tag(run_id, "error")
    one.client.log_metric(run_id, "final/fid", 3.0)
    one.set_status(run_id, "FINISHED")
    late = exported(one, tmp_path, "late")
    assert import_runs(store, [late]).imported.total() == 1
    assert content(store) == content(one)
    assert import_runs(store, [early, late]).imported.total() == 0  # nor does it go back
    assert content(store) == content(one)


def test_a_run_that_was_resumed_elsewhere_comes_back_finished(make: Make, fresh: MakeStore, tmp_path: Path) -> None:
    one, other = make([]), fresh()
    add(one, [student(0)], "KILLED")
    import_runs(other, [exported(one, tmp_path, "there", unfinished=True)])
    other.set_status(other.runs("mnist_kd")[0].run_id, "FINISHED")
    import_runs(one, [exported(other, tmp_path, "back")])
    (run,) = one.runs("mnist_kd")
    assert (run.status, run.tags[ORIGIN]) == ("FINISHED", run.run_id)
    assert import_runs(one, [tmp_path / "there.zip", tmp_path / "back.zip"]).imported.total() == 0


# --- studies --------------------------------------------------------------------------------------------------------


def same_study(one: StudyRecord, two: StudyRecord) -> None:
    trials = [study.trials.drop(columns=["run_id", "seconds"]) for study in (one, two)]
    pd.testing.assert_frame_equal(*trials)
    for part in ("name", "objectives", "directions", "reports", "front", "best"):
        assert getattr(one, part) == getattr(two, part)


def test_a_study_can_be_read_and_gone_on_with(store: Store, fresh: MakeStore, tmp_path: Path) -> None:
    def reporting(run: Run, params: dict[str, Any], report: Callable[[int, float], None]) -> list[float]:
        report(10, 0.25)
        return objective(run, params, report)

    sweep = open_sweep(store)
    assert sweep.work(reporting, Terminal())
    sweep.end()
    before = load_study(store, "sweep", "study")
    table = before.trials[["number", "run_id"]]
    sweep.run.log_file("confirmation.csv", lambda path: table.to_csv(path, index=False))
    other = fresh()
    import_runs(other, [exported(store, tmp_path)])
    after = load_study(other, "sweep", "study")
    same_study(before, after)
    assert not {*before.trials["run_id"]} & {*after.trials["run_id"]}
    assert {other.record(run_id).parent for run_id in after.trials["run_id"]} == {after.run_id}
    with other.artifact(after.run_id, "confirmation.csv") as path:  # names the runs as they are called here
        pd.testing.assert_frame_equal(pd.read_csv(path), after.trials[["number", "run_id"]])
    for each in (store, other):
        assert open_sweep(each, trials=5).work(reporting, Terminal())
    same_study(load_study(store, "sweep", "study"), load_study(other, "sweep", "study"))


def ran(store: Store, trials: int) -> None:
    sweep = open_sweep(store, trials=trials)
    sweep.work(objective, Terminal())
    sweep.end()


def test_a_study_that_went_on_brings_its_new_trials(store: Store, fresh: MakeStore, tmp_path: Path) -> None:
    other = fresh()
    for trials in (3, 5):
        ran(store, trials)
        trials_there = load_study(store, "sweep", "study").trials
        Run(store, open_sweep(store).run.run_id).log_file("trials.csv", trials_there.to_csv)
        path = exported(store, tmp_path, f"{trials}")
        import_runs(other, [path])
        assert content(other) == content(store)
        assert import_runs(other, [path]).imported.total() == 0


def test_a_study_that_went_on_in_two_stores_is_not_mixed(store: Store, fresh: MakeStore, tmp_path: Path) -> None:
    other = fresh()
    ran(store, 3)
    import_runs(other, [exported(store, tmp_path, "begun")])
    ran(store, 4)
    ran(other, 5)
    before = content(other)
    summary = import_runs(other, [exported(store, tmp_path, "went on")])
    assert (summary.imported.total(), summary.there.total(), summary.twins.total()) == (0, 4, 1)
    assert content(other) == before
    assert load_study(other, "sweep", "study").trials["number"].tolist() == [0, 1, 2, 3, 4]


def test_trials_follow_their_study(store: Store, fresh: MakeStore, tmp_path: Path) -> None:
    """A study made on two machines stays one with its own trials; one that has not finished is not exported."""
    sweep = open_sweep(store)
    sweep.work(objective, Terminal())
    with pytest.raises(InputError, match=r"has no finished run to export"):
        exported(store, tmp_path, "nothing")
    sweep.end()
    twin = fresh()
    ran(twin, 4)
    summary = import_runs(store, [exported(twin, tmp_path)])
    assert (summary.imported.total(), summary.twins.total()) == (0, 5)
    assert len(load_study(store, "sweep", "study").trials) == 3


def test_a_lost_trial_of_an_unfinished_study_is_run_again(store: Store, fresh: MakeStore, tmp_path: Path) -> None:
    sweep = open_sweep(store)
    take(sweep, **DEAD)
    other = fresh()
    import_runs(other, [exported(store, tmp_path, unfinished=True)])
    assert load_study(other, "sweep", "study").trials["state"].tolist() == ["running", "waiting"]
    assert open_sweep(other).work(objective, Terminal())
    trials = load_study(other, "sweep", "study").trials
    assert trials["state"].value_counts().to_dict() == {"complete": 3, "lost": 1}


# --- interrupted ----------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


@pytest.mark.parametrize("method", ["create_run", "log_batch", "log_artifacts", "set_terminated", "delete_tag"])
def test_a_killed_import_counts_for_nothing_and_is_gone_on_with(
    make: Make, fresh: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    one, store = make([student(0), student(1)]), fresh()
    for run in all_runs(one):
        Run(one, run.run_id).log_dataset("digits", "0" * 8, "sklearn", "training")
    path = exported(one, tmp_path)
    real, left = getattr(mlflow.MlflowClient, method), [1]

    def deadly(*arguments: Any, **options: Any) -> Any:  # with the second call
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return real(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, method, deadly)
        with pytest.raises(Killed):
            import_runs(store, [path])
    whole = content(one)
    for run in all_runs(store):
        if run.status == "FINISHED":
            found = content(store)[run.tags[ORIGIN]]
            found["tags"].pop(IMPORTING, None)
            assert found == whole[run.tags[ORIGIN]]
        else:
            assert (run.status, run.tags[IMPORTING]) == ("RUNNING", "true")
    assert len([run for run in all_runs(store) if IMPORTING in run.tags]) >= 1
    import_runs(store, [path])
    assert content(store) == whole


def test_a_half_imported_run_is_not_exported(make: Make, tmp_path: Path) -> None:
    store = make([student(0), student(1)])
    store.set_tags(store.runs("mnist_kd")[0].run_id, {IMPORTING: True})
    assert export_runs(store, tmp_path / "runs.zip", unfinished=True).total() == 1


def test_a_failing_store_is_one_sentence(
    make: Make, fresh: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = exported(make([student(0)]), tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise MlflowException("no space left\nhere")

    monkeypatch.setattr(mlflow.MlflowClient, "log_artifacts", full)
    with pytest.raises(InputError, match=r"^the run store sqlite:\S+ failed \(no space left\): mend that"):
        import_runs(fresh(), [path])


# --- bad files ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of two runs."""
    return exported(make([student(0), student(1)]), tmp_path_factory.mktemp("good"))


def pack(path: Path, members: Mapping[str, bytes], signed: bool = True) -> None:
    """Write a zip file; the manifest gets the checksums of what is there, unless it is to stay as it is."""
    if signed:
        inner = {name: data for name, data in members.items() if name != "manifest.json"}
        with zipfile.ZipFile(path, "w") as file:  # checksums by the code that writes archives
            writer = bundle.Writer(file)
            for name, data in inner.items():
                source = path.with_suffix(".part")
                source.write_bytes(data)
                with source.open("rb") as opened:
                    writer._write(name, opened)
            writer.finish(json.loads(members["manifest.json"])["experiments"])
        return
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)


def first(members: Members, folder: str) -> str:
    return next(name for name in members if name.startswith(folder))


def edit_json(members: Members, name: str, **changes: Any) -> None:
    members[name] = json.dumps({**json.loads(members[name]), **changes}).encode()


def renamed(name: str) -> Callable[[Members], bool]:
    """Give an artifact another name."""

    def edit(members: Members) -> bool:
        members[name] = members.pop(first(members, "artifacts/"))
        return True

    return edit


def experiment_outside(members: Members) -> bool:
    edit_json(members, "manifest.json", experiments={"../x": {}})
    for name in [name for name in members if name.startswith("runs/")]:
        edit_json(members, name, experiment="../x")
    return True


def run_field(**changes: Any) -> Callable[[Members], bool]:
    def edit(members: Members) -> bool:
        edit_json(members, first(members, "runs/"), **changes)
        return True

    return edit


def manifest_field(**changes: Any) -> Callable[[Members], bool]:
    def edit(members: Members) -> bool:
        edit_json(members, "manifest.json", **changes)
        return False

    return edit


def replaced(folder: str, data: bytes, signed: bool) -> Callable[[Members], bool]:
    def edit(members: Members) -> bool:
        members[first(members, folder)] = data
        return signed

    return edit


def resized(members: Members) -> bool:
    manifest = json.loads(members["manifest.json"])
    manifest["files"][first(members, "artifacts/")]["size"] += 1
    members["manifest.json"] = json.dumps(manifest).encode()
    return False


def flipped(members: Members) -> bool:
    name = first(members, "artifacts/")
    members[name] = bytes([members[name][0] ^ 1]) + members[name][1:]
    return False


def without(folder: str) -> Callable[[Members], bool]:
    def edit(members: Members) -> bool:
        del members[first(members, folder)]
        return False

    return edit


def also(name: str, signed: bool) -> Callable[[Members], bool]:
    def edit(members: Members) -> bool:
        members[name] = b"more"
        return signed

    return edit


def under_a_file(members: Members) -> bool:
    members[first(members, "artifacts/") + "/more"] = b"more"
    return True


EDITS = {
    "traversal": (renamed("../x"), "'../x', which leads out of its folder"),
    "traversal inside": (renamed("artifacts/a/../../../x"), "which leads out of its folder"),
    "absolute": (renamed("/etc/x"), "'/etc/x', which leads out"),
    "backslash": (renamed("artifacts\\..\\x"), "which leads out of its folder"),
    "control": (renamed("artifacts/a/x\ny"), "which leads out of its folder"),
    "experiment outside": (experiment_outside, "'../x', which leads out"),
    "artifact of no run": (renamed("artifacts/abc/x"), "names runs or experiments that it does not have"),
    "elsewhere": (also("other/x", True), "has files in wrong places"),
    "under a file": (under_a_file, "has files in wrong places"),
    "other format": (manifest_field(format="pictures"), "is an archive of something else"),
    "other version": (manifest_field(version=2, more=1), r"is of format version 2, not 1: use the code that wrote it"),
    "no format": (lambda members: members.update({"manifest.json": b"{}"}), "something else than expected in manifest"),
    "no JSON": (lambda members: members.update({"manifest.json": b"x"}), r"in manifest.json \(Invalid JSON"),
    "unlisted": (also("artifacts/x/y", False), "does not have the files that its manifest lists"),
    "missing artifact": (without("artifacts/"), "does not have the files that its manifest lists"),
    "missing run": (without("runs/"), "does not have the files that its manifest lists"),
    "no manifest": (without("manifest.json"), "is a zip file without manifest.json"),
    "checksum": (flipped, r"is damaged: artifacts/\S+ does not have its SHA-256"),
    "size": (resized, "has another size of artifacts/"),
    "unknown experiment": (run_field(experiment="unknown"), "names runs or experiments that it does not have"),
    "other run": (run_field(run_id="0" * 32), "has another run in runs/"),
    "bad id": (run_field(run_id="../x"), r"\(run_id: "),
    "bad status": (run_field(status="DONE"), r"\(status: "),
    "bad field": (run_field(extra=1), r"\(extra: "),
    "bad metric": (run_field(metrics={"loss/a": [[1, 2]]}), r"\(metrics.loss/a.0.2: "),
    "run of bytes": (replaced("runs/", b"\xff\x00", True), "something else than expected in runs/"),
}


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: Store, *paths: Path) -> str:
    """Import and return the one sentence that it ends with, once nothing is in the store."""
    capsys.readouterr()
    assert call(monkeypatch, "archive", "import", *map(str, paths)) == 2
    out, err = capsys.readouterr()
    assert (out, store.experiments()) == ("", ["Default"])
    assert "Traceback" not in err
    (sentence,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert err.endswith(f"{sentence}\n")
    return sentence


@pytest.mark.parametrize("edit", EDITS)
def test_a_changed_archive_is_refused(
    store: Store, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, edit: str
) -> None:
    change, message = EDITS[edit]
    with zipfile.ZipFile(good) as file:
        members = {name: file.read(name) for name in file.namelist()}
    bad = tmp_path / "bad.zip"
    pack(bad, members, bool(change(members)))
    assert re.search(message, refused(monkeypatch, capsys, store, good, bad))  # nor is the good one imported


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def central(data: bytes, offset: int, value: bytes) -> bytes:
    """Change a field of the last entry of the zip's directory: that of the manifest."""
    start = data.rindex(b"PK\x01\x02") + offset
    return data[:start] + value + data[start + len(value) :]


FILES = {
    "truncated": (truncated, "is no archive of runs, or was cut short"),
    "cut by a byte": (lambda data: data[:-1], "is no archive of runs, or was cut short"),
    "empty": (lambda data: b"", "is no archive of runs, or was cut short"),
    "text": (lambda data: b"seed,iou\n", "is no archive of runs, or was cut short"),
    "absurd size": (lambda data: central(data, 24, b"\xfe\xff\xff\x7f"), r"declares 2.\d+GB for manifest.json"),
    "symlink": (lambda data: central(data, 38, (stat.S_IFLNK << 16).to_bytes(4, "little")), "has a link"),
    "encrypted": (lambda data: central(data, 8, b"\x01\x00"), "is damaged"),
    "unknown compression": (lambda data: central(data, 10, b"\x63\x00"), "is damaged"),
    "broken stream": (lambda data: data.replace(data[200:260], bytes(60), 1), "is (damaged|no archive)"),
}


@pytest.mark.parametrize("fault", FILES)
def test_a_damaged_or_foreign_file_is_refused(
    store: Store, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, fault: str
) -> None:
    change, message = FILES[fault]
    bad = tmp_path / "bad.zip"
    bad.write_bytes(change(good.read_bytes()))
    assert re.search(message, refused(monkeypatch, capsys, store, good, bad))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_are_there_twice_are_refused(
    store: Store, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    bad = Path(shutil.copy(good, tmp_path / "bad.zip"))
    with zipfile.ZipFile(bad, "a") as file:
        file.writestr("manifest.json", file.read("manifest.json"))
    assert "does not have the files that its manifest lists" in refused(monkeypatch, capsys, store, bad)


def test_files_that_share_their_bytes_are_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A zip bomb: many entries for the same compressed bytes."""
    bad = tmp_path / "bad.zip"
    members = {f"artifacts/{'0' * 32}/{number}": bytes(2**20) for number in range(3)}
    manifest = json.dumps({"experiments": {}}).encode()
    pack(bad, {**members, "manifest.json": manifest})
    with zipfile.ZipFile(bad) as file:
        infos = {info.filename: info for info in file.infolist()}
    monkeypatch.setattr(zipfile.ZipFile, "infolist", lambda self: [*infos.values()])
    for info in infos.values():
        info.compress_size = bad.stat().st_size
    assert "declares more content than it has" in refused(monkeypatch, capsys, store, bad)


def test_an_import_needs_room(
    store: Store, good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    assert "the import takes up to " in refused(monkeypatch, capsys, store, good)


def test_what_is_no_file_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "there is no file" in refused(monkeypatch, capsys, store, tmp_path / "missing.zip")
    assert "is no archive" in refused(monkeypatch, capsys, store, tmp_path)
    assert "no archive is named" in refused(monkeypatch, capsys, store)


# --- export ---------------------------------------------------------------------------------------------------------


def test_the_command_exports_and_imports(
    store: Store, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = make([student(0), {**student(1), "experiment": "other"}])
    add(one, [student(2)], "KILLED")
    path = tmp_path / "runs.zip"
    with monkeypatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", one.uri)
        assert call(patched, "archive", "export", str(path), "--experiment", "mnist_kd", "--status", "all") == 0
    assert capsys.readouterr().out.startswith(f"exported 2 runs of 1 experiments: {path}, ")
    assert call(monkeypatch, "archive", "import", str(path)) == 0
    assert capsys.readouterr().out == "imported 2 runs of 1 experiment; 0 were there already\n"
    assert sorted(run.status for run in store.runs("mnist_kd")) == ["FINISHED", "KILLED"]


def test_finished_runs_alone_are_exported_by_default(make: Make, tmp_path: Path) -> None:
    one = make([student(0)])
    for status in ("KILLED", "FAILED", "RUNNING"):
        add(one, [student(1)], status)
    assert export_runs(one, tmp_path / "runs.zip") == {"mnist_kd": 1}


def test_what_cannot_be_exported_is_one_sentence_and_leaves_no_file(
    make: Make, fresh: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make([student(0)])
    path = tmp_path / "runs.zip"
    with pytest.raises(InputError, match=r"has no experiment 'nonsense': choose from Default, mnist_kd\.$"):
        export_runs(one, path, ["nonsense"])
    with pytest.raises(InputError, match="has no finished run to export"):
        export_runs(fresh(), path)
    monkeypatch.setattr(bundle, "_MAX_JSON", 100)
    with pytest.raises(InputError, match=r"^runs/\w+\.json cannot be archived: it takes \d"):
        export_runs(one, path)
    assert list(tmp_path.iterdir()) == []
    path.write_text("precious")
    with pytest.raises(InputError, match=r"runs\.zip is there already"):
        export_runs(one, path)
    assert path.read_text() == "precious"
    with pytest.raises(InputError, match=r"more\.zip cannot be written \("):
        export_runs(one, path / "more.zip")


def test_a_file_of_an_impossible_name_is_refused(store: Store, tmp_path: Path) -> None:
    add(store, [student(0)])
    Run(store, store.runs("mnist_kd")[0].run_id).log_file("a\\b.txt", lambda path: path.write_text("x"))
    with pytest.raises(InputError, match=r"cannot be archived: rename this file"):
        export_runs(store, tmp_path / "runs.zip")


def test_a_moved_store_is_not_exported_without_what_its_runs_kept(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "moved"
    shutil.move(make([student(0)]).folder, moved)
    with pytest.raises(InputError, match=r"what the runs of mnist_kd kept is looked for in .* the store was moved"):
        export_runs(open_store(f"sqlite:///{moved / 'mlflow.db'}"), tmp_path / "runs.zip")


# --- tracking servers -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_runs_go_through_a_tracking_server(make: Make, fresh: MakeStore, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, database = f"http://127.0.0.1:{port}", fresh().uri
    options = ["--backend-store-uri", database, "--artifacts-destination", str(tmp_path / "kept"), "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(120):
                try:
                    requests.get(f"{address}/health", timeout=1).raise_for_status()
                    break
                except requests.RequestException:
                    time.sleep(0.5)
            one, other, remote = make([student(0), student(1)]), fresh(), open_store(address)
            path = exported(one, tmp_path)
            assert import_runs(remote, [path]).imported.total() == 2
            assert import_runs(remote, [path]).there.total() == 2
            import_runs(other, [exported(remote, tmp_path, "back")])
            assert content(one) == content(remote) == content(other)
        finally:
            server.terminate()
