"""The one exception for mistakes a user can mend."""


class InputError(ValueError):
    """Bad input: one sentence that says what is wrong, where, and how to mend it.

    Scripts started through `skdcgn.cli.entry` print the sentence and exit with code 2, without a traceback.
    """
