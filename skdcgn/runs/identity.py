"""The run store: the only module that imports mlflow.

One store holds everything: SQLite at `mlruns/mlflow.db` with its artifacts beside it, or the tracking server that
`MLFLOW_TRACKING_URI` names. A run is known by the hash of its resolved config and the version of the code: a
finished one is not run again, a killed one is continued in the same MLflow run.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PROJECT = Path(__file__).resolve().parents[2]


def config_hash(config: Any, identity: Mapping[str, str] | None = None) -> str:
    """Return the identity of a run: a hash of its resolved config.

    Args:
        config: a dataclass. Its `runtime` (device, threads, ...) and every path in it are left out: they say where
            and how a run executes, not what it computes.
        identity: what stands for the contents of those paths, such as the teacher's SHA-256.
    """
    content = {**_without_paths(dataclasses.asdict(config)), **(identity or {})}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _without_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_paths(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if key != "runtime" and value is not None and not isinstance(value, Path)
    }


def overrides(config: Any, default: Any, scope: Sequence[str]) -> str:
    """Say in what a config departs from its profile's default: `loss.kl=0.5, distill.steps=100`, or `none`.

    Args:
        config: the config of a run.
        default: the profile's.
        scope: fields that choose what to run rather than how, such as the data set and the seeds: left out.
    """
    ours, theirs = (flatten(dataclasses.asdict(each)) for each in (config, default))
    changed = [
        f"{key}={value}"
        for key, value in ours.items()
        if value != theirs[key] and key.split(".")[0] not in (*scope, "runtime")
    ]
    return ", ".join(changed) or "none"


def code_version(experiment: str) -> str:
    """Return a hash of the package's source and of the script of an experiment."""
    package = Path(__file__).parents[1]
    sources = sorted(package.rglob("*.py"))
    script = _PROJECT / "experiments" / f"{experiment}.py"
    if script.exists():
        sources.append(script)
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:12]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys: {"loss": {"kl": 1}} becomes {"loss.kl": 1}."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
