"""What the sweeps found, drawn from the run store: history, importance, response surfaces, fresh seeds."""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import optuna
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from optuna.trial import TrialState
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from analysis.frame import style, view
from analysis.frame.table import Listing
from skdcgn.errors import InputError
from skdcgn.measure.statistics import mean_interval
from skdcgn.recipes.sweep import compare
from skdcgn.runs.search import Direction, load_study, table
from skdcgn.runs.store import Store

_LABELS = {"iou": "held-out mask IoU ↑", "l1": "held-out L1 ↓", "parameters": "student's parameters ↓"}
_NAMES = {
    "loss.lambda_1": "λ1 (pixel)",
    "loss.lambda_2": "λ2 (adversarial)",
    "loss.lambda_1_decay": "decay of λ1",
    "loss.n_critic": "n_critic",
    "loss.kl": "λ_KL",
    "loss.kl_on": "KL on",
    "loss.kl_direction": "direction",
    "loss.temperature": "temperature",
    "student.width": "student's width",
}
_SEARCHES = {"sweep_lambdas": "search for λ1 and λ2", "sweep_kl": "search for the KL term"}
_DIRECTIONS = {"teacher_student": "KL(T‖S), Eq. 6", "student_teacher": "KL(S‖T)"}
_ENOUGH = 6  # completed trials below which a fit would be fiction
_SPAN = 0.15  # of the values' range, kept around them


class Found(NamedTuple):
    """A study of the store."""

    run_id: str
    name: str
    tags: dict[str, str]
    study: optuna.Study
    trials: pd.DataFrame
    """See `skdcgn.sweeps.table`; and `response`, the metric that a trial had, or would have had, at its end."""
    metric: str
    direction: Direction
    confirmed: pd.DataFrame | None
    """Settings on fresh seeds; None until the study has been finished."""

    @property
    def completed(self) -> pd.DataFrame:
        """The trials that came to their end."""
        return self.trials[self.trials["state"] == "complete"]


def find(store: Store, experiment: str, profile: str | None = None, objectives: int = 1) -> Found | None:
    """Return the newest study of an experiment with a completed trial, of the widest profile; None without one.

    Studies of a profile's own settings go before those that override some.

    Args:
        store: the run store.
        experiment: the sweep.
        profile: of the study; by default the first of `view.PROFILES` that has one.
        objectives: how many of them the study has.

    Raises:
        InputError: there is no such profile.
    """
    rows = [
        {"run_id": run.info.run_id, "name": run.info.run_name, "profile": run.data.tags["profile"]}
        | {"tags": run.data.tags}
        for run in store.search(experiment)
        if run.data.tags.get("phase") == "study"
    ]
    studies = view.widest(pd.DataFrame(rows, columns=["run_id", "name", "profile", "tags"]), profile)
    plain = studies["tags"].map(lambda tags: tags.get("overrides", "none") == "none").astype(bool)
    for _, row in pd.concat([studies[plain], studies[~plain]]).iterrows():
        study = load_study(store, experiment, row["name"])
        if len(study.directions) != objectives:
            continue
        trials = table(study)
        if "state" not in trials or not (trials["state"] == "complete").any():
            continue
        try:
            with store.artifact(row["run_id"], "confirmation.csv") as path:
                confirmed = pd.read_csv(path)
        except InputError:
            confirmed = None
        direction = study.directions[0].name.lower()
        metric = study.user_attrs["objectives"][0]
        trials["response"] = _response(study, trials, metric)
        return Found(row["run_id"], row["name"], row["tags"], study, trials, metric, direction, confirmed)
    return None


def history(store: Store, experiment: str, profile: str | None = None) -> Figure:
    """Draw the objective of every trial in order, and the best so far."""
    title = f"Optimisation history, {_SEARCHES[experiment]}"
    found = find(store, experiment, profile)
    if found is None:
        return _gap(title, experiment, profile)
    caption = (
        "Filled: completed; hollow: stopped early, at its last value; cross: failed, or its process died (drawn at "
        f"the bottom). Dashed: the first trial, with the paper's values. {_provenance(found)}"
    )
    figure, (axes,) = style.plots(1, _titled(title, found), caption)
    with style.style():
        _scatter(axes, found, found.trials, "number", style.PALETTE[0])
        completed = found.completed
        best = completed[found.metric].cummax() if found.direction == "maximize" else completed[found.metric].cummin()
        axes.step(completed["number"], best, where="post", color=style.PALETTE[1], label="best so far")
        axes.axhline(found.trials[found.metric].iloc[0], color="0.4", linestyle="--", linewidth=1)
        axes.set(xlabel="trial", ylabel=_LABELS[found.metric])
        _limit(axes, found)
        failed = found.trials[~found.trials["state"].isin(["complete", "pruned", "running", "waiting"])]
        axes.plot(failed["number"], [axes.get_ylim()[0]] * len(failed), "x", color=style.PALETTE[3], clip_on=False)
        axes.legend(loc="lower right")
    return style.cite(figure, [found.run_id])


def importance(store: Store, experiment: str, profile: str | None = None, resamples: int = 30) -> Figure:
    """Draw how much of the objective's variation each parameter explains, and how sure that is.

    Every resample draws as many completed trials with replacement, and gives fANOVA another seed.

    Args:
        store: the run store.
        experiment: the sweep.
        profile: of the study; by default the first of `view.PROFILES` that has one.
        resamples: of the bootstrap.
    """
    title = f"Importance of the parameters, {_SEARCHES[experiment]}"
    found = find(store, experiment, profile)
    if found is None:
        return _gap(title, experiment, profile)
    if len(found.completed) < _ENOUGH:
        return _gap(title, experiment, profile, f"Only {len(found.completed)} completed trials in the store.")
    values = importances(found.study, resamples)
    names = values.groupby("parameter")["share"].mean().sort_values(ascending=False).index
    caption = (
        f"Bars: mean over {resamples} bootstrap resamples of the {len(found.completed)} completed trials, each with "
        "another seed of the random forest; lines: their 95 % range. fANOVA explains the variation over the whole "
        f"space, PED-ANOVA what sets the best trials apart. {_provenance(found)}"
    )
    figure, (axes,) = style.plots(1, _titled(title, found), caption, right=1.3)
    with style.style():
        methods = values["method"].unique()
        for index, method in enumerate(methods):
            chosen = values[values["method"] == method]
            shares = [chosen[chosen["parameter"] == name]["share"] for name in names]
            means = np.array([share.mean() for share in shares])
            spread = np.array([np.quantile(share, (0.025, 0.975)) for share in shares]).T
            axes.bar(
                np.arange(len(names)) + 0.36 * (index - 0.5),
                means,
                0.34,
                yerr=np.abs(spread - means),
                color=style.PALETTE[index],
                label=method,
                error_kw={"elinewidth": 1, "capsize": 3},
            )
        axes.set_xticks(range(len(names)), [_NAMES.get(name, name) for name in names])
        axes.set(ylabel="share of the variation", ylim=(0, 1))
        axes.grid(False, axis="x")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return style.cite(figure, [found.run_id])


def importances(study: optuna.Study, resamples: int, seed: int = 0) -> pd.DataFrame:
    """Return parameter importances by bootstrap over completed trials: columns method, resample, parameter, share."""
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    random = np.random.default_rng(seed)
    rows = []
    for resample in range(resamples):
        drawn = optuna.create_study(direction=study.directions[0].name.lower())
        for index in random.integers(len(completed), size=len(completed)):
            trial = completed[index]
            drawn.add_trial(
                optuna.trial.create_trial(value=trial.values[0], params=trial.params, distributions=trial.distributions)
            )
        evaluators = {
            "fANOVA": FanovaImportanceEvaluator(n_trees=32, seed=resample),
            "PED-ANOVA": PedAnovaImportanceEvaluator(),
        }
        for method, evaluator in evaluators.items():
            shares = optuna.importance.get_param_importances(drawn, evaluator=evaluator)
            rows += [(method, resample, name, share) for name, share in shares.items()]
    return pd.DataFrame(rows, columns=["method", "resample", "parameter", "share"])


def lambda_response(store: Store, profile: str | None = None) -> Figure:
    """Draw the objective over lambda_1 and lambda_2: a slice of each, and the contour over both."""
    title, experiment = "Response to λ1 and λ2", "sweep_lambdas"
    found = find(store, experiment, profile)
    if found is None:
        return _gap(title, experiment, profile)
    columns = ["loss.lambda_1", "loss.lambda_2"]
    caption = (
        "Dots: trials (hollow: stopped early, lifted by what completed trials gained from there on). Star: the "
        "paper's values; diamond: the best trial. Lines and contours: a Gaussian process fitted to the trials, stopped "
        "ones counting less; bands: 95 % interval of its mean, the other weight at its median over the trials. "
        f"{_provenance(found)}"
    )
    figure, panels = style.plots(3, _titled(title, found), caption, right=0.9)
    with style.style():
        fit = _surrogate(found, found.trials, columns)
        for axes, column in zip(panels, columns, strict=False):
            _scatter(axes, found, found.trials, column, style.PALETTE[0], "response")
            if fit is not None:
                grid = np.repeat(np.log10(found.trials[columns].median().to_numpy(float))[None], 80, axis=0)
                grid[:, columns.index(column)] = np.log10(_range(found.trials[column]))
                _band(axes, _range(found.trials[column]), fit(grid))
            _mark(axes, found, [column, found.metric])
            axes.set(xscale="log", xlabel=_NAMES[column], ylabel="")
            _limit(axes, found)
        panels[0].set_ylabel(_LABELS[found.metric])
        axes = panels[2]
        if fit is not None:
            x, y = (_range(found.trials[column]) for column in columns)
            mesh = np.log10(np.stack(np.meshgrid(x, y), axis=-1))
            surface = fit(mesh.reshape(-1, 2))[0].reshape(mesh.shape[:2])
            low, high = _bounds(found)
            contour = axes.contourf(
                x, y, surface, np.linspace(low, high, 15), cmap="viridis", extend="both", alpha=0.85
            )
            bar = figure.colorbar(contour, cax=axes.inset_axes((1.04, 0, 0.05, 1)), format="%.3f")
            bar.ax.grid(False)
        axes.scatter(found.trials[columns[0]], found.trials[columns[1]], s=12, color="white", edgecolor="black")
        _mark(axes, found, columns)
        axes.set(xscale="log", yscale="log", xlabel=_NAMES[columns[0]], ylabel=_NAMES[columns[1]])
        axes.grid(False)
    return style.cite(figure, [found.run_id])


def kl_response(store: Store, profile: str | None = None) -> Figure:
    """Draw the objective over lambda_KL, for each place where the KL applies, with intervals."""
    title, experiment = "Response to the KL term", "sweep_kl"
    found = find(store, experiment, profile)
    if found is None:
        return _gap(title, experiment, profile)
    column, places = "loss.kl", ("pixels", "image", "activations")
    caption = (
        "Dots: trials (hollow: stopped early, lifted by what completed trials gained from there on); directions and "
        "temperatures vary along a line. Line "
        f"and band: a Gaussian process where {_ENOUGH} trials or more were completed (stopped ones count less), with "
        "the 95 % interval of its mean. Grey: no KL, mean and 95 % interval over fresh seeds. Star: Eq. 6 as the paper "
        f"has it; diamond: the best trial. {_provenance(found)}"
    )
    figure, panels = style.plots(3, _titled(title, found), caption, right=1.5)
    with style.style():
        for axes, place in zip(panels, places, strict=True):
            shown = found.trials[found.trials["loss.kl_on"] == place]
            for index, (direction, label) in enumerate(_DIRECTIONS.items()):
                color = style.PALETTE[index]
                _scatter(axes, found, shown[shown["loss.kl_direction"] == direction], column, color, "response")
                axes.plot([], [], "o", color=color, label=label)
            fit = _surrogate(found, shown, [column])
            if fit is not None:
                x = _range(shown[column])
                _band(axes, x, fit(np.log10(x)[:, None]))
            if found.confirmed is not None:
                none = mean_interval(found.confirmed.query("setting == 'no KL'")[found.metric].tolist())
                axes.axhspan(none.low, none.high, color="0.5", alpha=0.2, linewidth=0)
                axes.axhline(none.mean, color="0.4", linewidth=1, linestyle="--")
            _mark(axes, found, [column, found.metric], shown["number"])
            axes.set(xscale="log", xlim=_ends(found.trials[column]), xlabel=_NAMES[column], title=f"KL on {place}")
            low, high = found.trials["response"].min(), found.trials["response"].max()
            axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        panels[0].set_ylabel(_LABELS[found.metric])
        panels[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return style.cite(figure, [found.run_id])


def pareto_front(store: Store, experiment: str = "sweep_lambdas", profile: str | None = None) -> Figure:
    """Draw fidelity over size, and the trials that no other one beats in both."""
    title = "Fidelity against size"
    found = find(store, experiment, profile, objectives=2)
    if found is None:
        command = f"{view.command(experiment, profile=profile)} --widths 8 12 16 24"
        return style.gap(f"{title} ({experiment})", command, "No search of the student's width in the store.")
    caption = f"Dots: completed trials; line: the Pareto front. {_provenance(found)}"
    figure, (axes,) = style.plots(1, _titled(title, found), caption)
    with style.style():
        _scatter(axes, found, found.trials, "parameters", style.PALETTE[0])
        front = found.trials[found.trials["number"].isin(trial.number for trial in found.study.best_trials)]
        front = front.sort_values("parameters")
        axes.step(front["parameters"], front[found.metric], where="post", color=style.PALETTE[1], marker="o")
        axes.set(xlabel=_LABELS["parameters"], ylabel=_LABELS[found.metric])
        _limit(axes, found)
    return style.cite(figure, [found.run_id])


def fresh_seeds(store: Store, experiment: str, profile: str | None = None) -> Figure:
    """Draw the best trial against the reference settings, on seeds that the search has not seen."""
    title = f"The best trial on fresh seeds, {_SEARCHES[experiment]}"
    found = find(store, experiment, profile)
    if found is None or found.confirmed is None:
        return _gap(title, experiment, profile, "No finished study in the store.")
    values = found.confirmed.pivot(index="seed", columns="setting", values=found.metric)
    values = values[list(found.confirmed["setting"].unique())]
    caption = (
        f"Left: a thin line for each of {len(values)} seeds, all settings on the same initial weights and training "
        "noise; dots: mean and 95 % interval. Right: what the best trial gains over each other setting, paired by "
        f"seed, with 95 % intervals. On the search's own seed the best of many trials looks better than it is. "
        f"{_provenance(found)}"
    )
    figure, (left, right) = style.plots(2, _titled(title, found), caption)
    with style.style():
        for _, row in values.iterrows():
            left.plot(range(len(row)), row, color="0.6", linewidth=0.8)
        _intervals(left, [values[name] for name in values])
        left.set_xticks(range(values.shape[1]), values.columns)
        left.set(title=_LABELS[found.metric], xlim=(-0.5, values.shape[1] - 0.5))
        sign = 1 if found.direction == "maximize" else -1
        others = [name for name in values if name != "best"]
        _intervals(right, [sign * (values["best"] - values[name]) for name in others])
        right.axhline(0, color="0.4", linewidth=1)
        right.set_xticks(range(len(others)), [f"over {name}" for name in others])
        right.set(title="gain of the best trial (above 0: better)", xlim=(-0.5, len(others) - 0.5))
    return style.cite(figure, [found.run_id, *found.confirmed["run_id"]])


def verdict(store: Store, experiment: str, profile: str | None = None) -> str:
    """Say what the fresh seeds say, in words."""
    found = find(store, experiment, profile)
    if found is None or found.confirmed is None:
        return f"No finished study of {experiment} in the store."
    return compare(found.confirmed, found.metric, found.direction)


def best_trials(store: Store, experiment: str, profile: str | None = None, count: int = 5) -> pd.DataFrame:
    """Return the best trials of a study, and the first one, with the paper's values, for comparison."""
    found = find(store, experiment, profile)
    if found is None:
        return pd.DataFrame()
    ordered = found.completed.sort_values(found.metric, ascending=found.direction == "minimize", kind="stable")
    shown = pd.concat([ordered.head(count), found.trials.iloc[:1]]).drop_duplicates("number")
    columns = ["number", *found.study.user_attrs["objectives"], *(name for name in _NAMES if name in shown)]
    return shown[columns].set_index("number").rename(columns=_NAMES)


def _response(study: optuna.Study, trials: pd.DataFrame, metric: str) -> pd.Series:
    """Return the metric of each trial at its end.

    A trial stopped early is given what completed trials gained, in the median, from its last report to their ends:
    its last value itself would only say that it was not trained as long as these.
    """
    reports = {trial.number: trial.intermediate_values for trial in study.get_trials(deepcopy=False)}
    completed = trials[trials["state"] == "complete"]
    response = trials[metric].copy()
    for index, trial in trials[trials["state"] == "pruned"].iterrows():
        step = max(reports[trial["number"]])
        gains = [row[metric] - reports[row["number"]][step] for _, row in completed.iterrows()]
        response[index] += np.median(gains)
    return response


def _scatter(
    axes: Axes, found: Found, shown: pd.DataFrame, column: str, color: tuple[float, ...], value: str | None = None
) -> None:
    """Draw trials: completed ones filled, pruned ones hollow."""
    for state, face in (("complete", color), ("pruned", "none")):
        chosen = shown[shown["state"] == state]
        axes.scatter(chosen[column], chosen[value or found.metric], s=18, facecolor=face, edgecolor=color, linewidth=1)


def _mark(axes: Axes, found: Found, columns: Sequence[str], among: pd.Series | None = None) -> None:
    """Mark the paper's values and the best trial."""
    for row, marker, size in ((found.trials.iloc[0], "*", 150), (_best(found), "D", 45)):
        if among is None or row["number"] in set(among):
            x, y = row[list(columns)]
            axes.scatter([x], [y], marker=marker, s=size, color=style.PALETTE[3], edgecolor="black", zorder=4)


def _best(found: Found) -> pd.Series:
    values = found.completed[found.metric]
    return found.completed.loc[values.idxmax() if found.direction == "maximize" else values.idxmin()]


def _surrogate(
    found: Found, trials: pd.DataFrame, columns: Sequence[str]
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None:
    """Fit a Gaussian process over the logarithms of columns to trials.

    Those stopped early count less: how they would have ended is a guess.

    Returns:
        A function from (N, columns) logarithms to mean and standard deviation of the response (N,), noise left out;
        None where there are too few trials.
    """
    trials = trials[trials["state"].isin(["complete", "pruned"])]
    if (trials["state"] == "complete").sum() < _ENOUGH:
        return None
    x = np.log10(trials[list(columns)].to_numpy(float))
    # A bad trial may be so much worse than all others that it would leave the fit nothing to say about these.
    y = trials["response"].clip(*_bounds(found)).to_numpy(float)
    center, scale = y.mean(), y.std() or 1.0
    kernel = ConstantKernel(1.0, (0.05, 20)) * RBF([1.0] * len(columns), (0.7, 20)) + WhiteKernel(0.1, (1e-2, 2))
    doubt = np.where(trials["state"] == "pruned", 1.0, 1e-10)
    process = GaussianProcessRegressor(kernel, alpha=doubt, n_restarts_optimizer=3, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length scale at its bound: that parameter does nothing
        process.fit(x, (y - center) / scale)
    noise = process.kernel_.k2.noise_level

    def predict(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, deviation = process.predict(points, return_std=True)
        return center + scale * mean, scale * np.sqrt(np.maximum(deviation**2 - noise, 0))

    return predict


def _band(axes: Axes, x: np.ndarray, response: tuple[np.ndarray, np.ndarray]) -> None:
    mean, deviation = response
    axes.plot(x, mean, color=style.PALETTE[2], linewidth=2)
    axes.fill_between(
        x, mean - 1.96 * deviation, mean + 1.96 * deviation, color=style.PALETTE[2], alpha=0.2, linewidth=0
    )


def _intervals(axes: Axes, samples: Sequence[pd.Series]) -> None:
    """Draw mean and 95 % interval of samples at 0, 1, ..."""
    for position, sample in enumerate(samples):
        mean, low, high, _ = mean_interval(sample.tolist())
        axes.errorbar(
            position, mean, [[mean - low], [high - mean]], fmt="o", color=style.PALETTE[0], capsize=4, linewidth=2
        )


def _ends(values: pd.Series) -> tuple[float, float]:
    return values.min() / 1.3, values.max() * 1.3


def _range(values: pd.Series) -> np.ndarray:
    return np.geomspace(*_ends(values), 80)


def _bounds(found: Found) -> tuple[float, float]:
    """The values that matter: the first trial's and those of the better nine tenths of the completed ones."""
    values = found.completed[found.metric]
    quantiles = (0.1, 1.0) if found.direction == "maximize" else (0.0, 0.9)
    low, high = values.quantile(quantiles[0]), values.quantile(quantiles[1])
    first = found.trials[found.metric].iloc[0]
    low, high = min(low, first), max(high, first)
    margin = max(_SPAN * (high - low), 1e-6)
    return low - margin, high + margin


def _limit(axes: Axes, found: Found) -> None:
    axes.set_ylim(*_bounds(found))


def _titled(title: str, found: Found) -> str:
    dataset = view.dataset_title(found.tags["dataset"])
    note = view.stand_in_note(pd.Series({**found.tags, "stand_in": found.tags["stand_in"] == "true"}))
    return f"{title}: {found.tags['mechanism']} student, {dataset}" + (f" ({note})" if note else "")


def _gap(title: str, experiment: str, profile: str | None, missing: str = "No study in the store.") -> Figure:
    return style.gap(f"{title} ({experiment})", view.command(experiment, profile=profile), missing)


def _provenance(found: Found) -> str:
    states = found.trials["state"].value_counts()
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    return f"Study {found.name} (run {found.run_id[:8]}): {counts}; teacher: {found.tags['teacher']}."


def best_trials_table(store: Store, experiment: str) -> Listing:
    """Return the best trials of a search beside the one with the paper's values."""
    trials = best_trials(store, experiment).reset_index()
    return Listing(
        f"Best trials of {experiment}, and the first, which has the paper's values",
        trials.map(lambda value: f"{value:.4g}" if isinstance(value, float) else value),
        (verdict(store, experiment),),
    )
