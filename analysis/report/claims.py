"""The report's tables of words: claims with their verdicts, criteria, deviations, costs.

python -m analysis.report.claims                          the claims table as Markdown, from the local run store
python -m analysis.report.claims --store http://host:5000 --profile full
"""

import html
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro

from analysis.frame.table import Listing
from analysis.frame.view import View
from analysis.report.deviations import DEVIATIONS
from analysis.report.paper import CLAIMS
from analysis.report.verdicts import verdicts
from skdcgn import cli
from skdcgn.runs.store import open_store


def claims(view: View) -> Listing:
    """Return the table of claims and verdicts, titled with their count."""
    decided = verdicts(view)
    kinds = Counter(verdict.label.split(":")[0] for verdict in decided)
    title = f"{len(decided)} claims: {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}"
    rows = []
    for verdict in decided:
        claim = verdict.claim
        missing = "".join(f" (`{command}`)" for command in verdict.commands)
        published = f" The paper has: {claim.paper}." if claim.paper else ""
        rows.append(
            {
                "claim of the paper": f"{claim.statement} ({claim.section}){published}",
                "verdict here": f"{verdict.status.symbol} {verdict.label}",
                "evidence": verdict.evidence + missing,
                "scale": verdict.scale,
                "look at": ", ".join(claim.figures),
            }
        )
    markup = {"verdict here": _badge, "evidence": _code, "look at": _links}
    notes = (
        "A prediction holds where the whole 95 % Student-t interval over seeds lies on its side, fails where it lies "
        "on the other, and is undecided otherwise. All of a claim's hold: confirmed; some: partly; none, and one "
        "fails: refuted; else: not shown. One seed alone, and a smoke test, decide nothing.",
        "Intervals are not corrected for their number: of twenty that should reach over their bound, one does not.",
    )
    return Listing(title, pd.DataFrame(rows), notes, markup)


def criteria() -> Listing:
    """Return the table of what was to confirm and to refute each claim."""
    rows = [
        {
            "claim of the paper": f"{claim.statement} ({claim.section})",
            "confirmed by": claim.confirms,
            "refuted by": claim.refutes,
            "decided by": ", ".join(claim.experiments),
        }
        for claim in CLAIMS
    ]
    return Listing("What confirms a claim, and what refutes it", pd.DataFrame(rows))


def deviations() -> Listing:
    """Return the table of what paper and released code say differently."""
    rows = pd.DataFrame(DEVIATIONS).drop(columns="claims").rename(columns={"code": "released code"})
    return Listing("Where they disagree", rows)


def costs(view: View) -> Listing:
    """Return what each experiment cost: finished runs, summed training time, hardware."""
    rows = []
    for experiment in view.experiments():
        for profile, shown in view.results(experiment).groupby("profile"):
            seconds = shown.get("cost/train_seconds", pd.Series()).sum()
            rows.append(
                {
                    "experiment": experiment,
                    "profile": profile,
                    "finished runs": len(shown),
                    "training": f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h",
                    "hardware": "; ".join(sorted(shown["hardware"].dropna().unique())),
                }
            )
    columns = ["experiment", "profile", "finished runs", "training", "hardware"]
    note = "Wall time of training alone, summed over runs, on machines that may have been doing other work."
    return Listing("Finished runs and their training time", pd.DataFrame(rows, columns=columns), (note,))


def _badge(verdict: str) -> str:
    status = verdict.split(" ", 1)[1].split(" (")[0].split(":")[0].replace(" ", "-")
    return f'<span class="verdict {html.escape(status)}">{html.escape(verdict)}</span>'


def _code(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))


def _links(names: str) -> str:
    """Link the names of figures and tables to their places in the report."""
    return ", ".join(f'<a href="#{name}">{name.replace("_", " ")}</a>' for name in names.split(", "))


def markdown(view: View, figures: Path) -> str:
    """Return the count of verdicts and the claims table as Markdown, linked to those figures that lie in a folder."""
    listing = claims(view)
    frame = listing.cells[["claim of the paper", "verdict here", "evidence", "scale", "look at"]].copy()

    def linked(names: str) -> str:
        present = [name for name in names.split(", ") if (figures / f"{name}.png").exists()]
        return ", ".join(f"[{name.replace('_', ' ')}]({(figures / name).as_posix()}.png)" for name in present)

    frame["look at"] = frame["look at"].map(linked)
    frame["verdict here"] = "**" + frame["verdict here"] + "**"
    return f"{listing.title}.\n\n{Listing(listing.title, frame).to_markdown()}"


@dataclass(frozen=True)
class Config:
    """The claims table as Markdown."""

    store: str | None = None
    """MLflow tracking URI of the run store; by default MLFLOW_TRACKING_URI, or else the local store."""
    dataset: str | None = None
    """Of the MNIST experiments; by default double_colored, or digits for those that were run on nothing else."""
    profile: str | None = None
    """Of the runs; by default, for each experiment, the widest that has any."""
    figures: Path = Path("analysis/reference")
    """Folder with PNG figures to link to."""


def main(config: Config) -> None:
    """Print the claims table."""
    print(markdown(View(open_store(config.store), config.profile, config.dataset), config.figures))


if __name__ == "__main__":
    cli.entry(lambda: main(tyro.cli(Config, prog="python -m analysis.report.claims", description=__doc__)))
