"""The claims of the paper, compared with the run store.

How a verdict is reached. A claim comes down to predictions about numbers, see `predictions`, each of which holds, fails
or is undecided, see `analysis.frame.judge`. All hold: confirmed. Some do: partly. None does, and one fails: refuted.
Otherwise: not shown. A smoke test decides nothing.
"""

from dataclasses import dataclass
from enum import Enum

from analysis.frame.judge import Finding
from analysis.frame.view import View
from analysis.report import paper
from analysis.report.paper import Claim
from analysis.report.predictions import PREDICTIONS


class Status(Enum):
    """What the runs say about a claim: in words, as a symbol, and in words where a miniature stands for ImageNet."""

    CONFIRMED = "confirmed", "✔", "points to it"
    PARTLY = "partly", "◐", "points both ways"
    REFUTED = "refuted", "✘", "points against it"
    OPEN = "not shown", "?", "open"
    NOT_TESTABLE = "not testable here", "–", ""
    NO_RUN = "no run", "…", ""

    def __init__(self, words: str, symbol: str, indicative: str) -> None:
        self.words, self.symbol, self.indicative = words, symbol, indicative


@dataclass(frozen=True)
class Verdict:
    """What the runs say about a claim, and why."""

    claim: Claim
    findings: tuple[Finding, ...]

    @property
    def status(self) -> Status:
        """See the module's docstring for the rule."""
        if not self.claim.experiments:
            return Status.NOT_TESTABLE
        if not self.run_ids:
            return Status.NO_RUN
        holds = [None if finding.smoke else finding.holds for finding in self.findings if finding.decides]
        if holds and all(holds):
            return Status.CONFIRMED
        if any(holds):
            return Status.PARTLY
        return Status.REFUTED if False in holds else Status.OPEN

    @property
    def label(self) -> str:
        """The status in words, no stronger than what it rests on."""
        if not self.run_ids or not any(finding.stand_in for finding in self.findings):
            return self.status.words
        if self.claim.imagenet:
            return f"indicative on the miniature: {self.status.indicative}"
        return f"{self.status.words} (on a stand-in)"

    @property
    def evidence(self) -> str:
        """The findings in a sentence."""
        if not self.claim.experiments:
            return f"no experiment here decides it: it takes {self.claim.confirms}"
        smoke = "smoke test, no evidence: " if any(finding.smoke for finding in self.findings) else ""
        return smoke + "; ".join(dict.fromkeys(finding.text for finding in self.findings))

    @property
    def scale(self) -> str:
        """What the findings rest on."""
        return "; ".join(dict.fromkeys(finding.scale for finding in self.findings if finding.scale))

    @property
    def commands(self) -> list[str]:
        """The commands that make what is missing."""
        return list(dict.fromkeys(finding.command for finding in self.findings if finding.command))

    @property
    def run_ids(self) -> list[str]:
        """The runs that the findings rest on."""
        return list(dict.fromkeys(run_id for finding in self.findings for run_id in finding.run_ids))


def verdicts(view: View) -> list[Verdict]:
    """Compare every claim of the paper with the runs, in the order of `paper.CLAIMS`."""
    return [
        Verdict(claim, tuple(finding for predict in PREDICTIONS.get(claim.id, ()) for finding in predict(view)))
        for claim in paper.CLAIMS
    ]
