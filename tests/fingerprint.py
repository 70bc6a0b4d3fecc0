"""Compare what two run stores hold, bit by bit: did a change of the code keep its behavior?

    python tests/fingerprint.py sqlite:///before/mlruns/mlflow.db > before.json
    python tests/fingerprint.py sqlite:///mlruns/mlflow.db > after.json
    python tests/fingerprint.py before.json after.json           exit code 1 where they differ

The address of an MLflow server will do as well.

A run is its final metrics, written exactly, and the SHA-256 of the tensors in every file that it kept; what measures
time is left out. Runs are matched by content within an experiment, so that it does not matter how they are named or
grouped, and a later run may hold more than the earlier one.
"""

import hashlib
import json
import re
import sys
import tempfile
from pathlib import Path

import mlflow
from safetensors.torch import load_file

_TIMED = re.compile(r"images_per_second|latency|seconds|megabytes")

Content = dict[str, list[str]]
"""Experiment to runs, and a run's name to its content: one line for each metric and for each file."""


def contents(uri: str) -> dict[str, Content]:
    """Return by experiment what every finished run holds that measured something."""
    client, found = mlflow.MlflowClient(uri), {}
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'", max_results=5000):
            final = [
                f"{k} {v.hex()}" for k, v in run.data.metrics.items() if k[:6] == "final/" and not _TIMED.search(k)
            ]
            if not final:
                continue
            with tempfile.TemporaryDirectory() as folder:
                root = Path(client.download_artifacts(run.info.run_id, "", folder))
                files = [_digest(path) for path in root.rglob("*.safetensors")]
            tags = {k: v for k, v in run.data.tags.items() if k in ("dataset", "mechanism", "source", "seed")}
            told = " ".join(f"{key}={value}" for key, value in sorted(tags.items()))
            name = f"{run.info.run_name} {told} ({run.info.run_id[:8]})"
            found.setdefault(experiment.name, {})[name] = sorted([*final, *files])
    return found


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file's tensors, without its metadata, which may name the run."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def compare(before: dict[str, Content], after: dict[str, Content]) -> bool:
    """Print by experiment how many runs were found again, and name those that were not; return whether all were."""
    complete = True
    for experiment, runs in sorted(before.items()):
        left = {name: set(content) for name, content in after.get(experiment, {}).items()}
        lost = []
        for name, content in runs.items():
            match = next((other for other, theirs in left.items() if theirs.issuperset(content)), None)
            lost += [] if match else [name]
            left.pop(match, None)
        print(f"{experiment}: {len(runs) - len(lost)} of {len(runs)} found again, {len(left)} new")
        print(*(f"  not found again: {name}" for name in lost), sep="\n", end="\n" if lost else "")
        complete = complete and not lost
    return complete


if __name__ == "__main__":
    if len(sys.argv) == 3:
        sys.exit(not compare(*(json.loads(Path(path).read_text()) for path in sys.argv[1:])))
    print(json.dumps(contents(sys.argv[1]), indent=1, sort_keys=True))
