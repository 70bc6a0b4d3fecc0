"""The exceptions that end a command with one sentence: a mistake that the user can mend, and an interruption."""

import signal


class InputError(ValueError):
    """Bad input: one sentence that says what is wrong, where, and how to mend it.

    Scripts started through `skdcgn.cli.entry` print the sentence and exit with code 2, without a traceback.
    """


class Interrupted(Exception):
    """A signal asked the run to end; it left a checkpoint and can be resumed."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum
