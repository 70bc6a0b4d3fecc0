"""The exceptions that end a command with one sentence, and what to say of the errors of disks and databases."""

import errno
import signal
import sqlite3


class InputError(ValueError):
    """Bad input: one sentence that says what is wrong, where, and how to mend it.

    Scripts started through `skdcgn.cli.entry` print the sentence and exit with code 2, without a traceback.
    """


class Unavailable(InputError):
    """A file is not on this machine and cannot be had: all that a caller may go on without, unlike a damaged one."""


class Diverged(InputError):
    """A loss is not a finite number any more."""

    def __init__(self, loss: str, value: float, step: int) -> None:
        super().__init__(
            f"loss {loss!r} is {value} at step {step}: lower the learning rate or the weight of the loss, and see "
            "whether the teacher's outputs are finite."
        )


class Interrupted(Exception):
    """A signal asked the run to end; it left a checkpoint and can be resumed."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}
_REFUSED |= {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}

_ROOM = "make room there, and start the same command again."
_SQLITE = {
    "database or disk is full": f"the disk of {{}} is full: {_ROOM}",
    "disk I/O error": f"{{}} cannot be read or written (its disk is full, or fails): {_ROOM}",
    "readonly database": "{} cannot be written: make it writable, or name another store in MLFLOW_TRACKING_URI.",
    "unable to open database file": "{} cannot be opened: make it and its folder writable, or name another store in "
    "MLFLOW_TRACKING_URI.",
    "database is locked": "{} is locked by another process: wait for that or end it, and start the same command again.",
    "is not a database": "{} is no SQLite database: name another store in MLFLOW_TRACKING_URI.",
    "failed with exception": "{} does not answer: start its server, or correct MLFLOW_TRACKING_URI.",
    "disk image is malformed": "{} is damaged: restore it from a copy, or name another store in MLFLOW_TRACKING_URI.",
}
"""What SQLite says, which MLflow, SQLAlchemy and servers hand on, or MLflow of a server, and what to say instead."""


def disk_fault(error: BaseException | None, store: str = "") -> str | None:
    """Return one sentence on what a disk, SQLite or a server refused, if that is behind an error, else None.

    Args:
        error: its causes are looked at as well, since MLflow and SQLAlchemy wrap what SQLite says.
        store: place of the database, where errors of SQLite do not have the attribute `filename` of an OSError.
    """
    chain = []
    while error is not None:
        chain.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    places = (getattr(each, "filename", "") for each in chain if isinstance(each, sqlite3.Error))
    store = store or next(places, "") or "the run store"
    return next((told for each in chain if (told := _refusal(each, store))), None)


def _refusal(error: BaseException, store: str) -> str | None:
    """Return what one error of a chain says of a disk."""
    if isinstance(error, OSError):
        place = error.filename2 or error.filename
        if error.errno in _FULL:
            return f"{f'the disk of {place}' if place else 'a disk'} is full ({error.strerror}): {_ROOM}"
        if error.errno in _REFUSED and place:
            return f"{place} cannot be read or written ({error.strerror}): mend that, or name another place."
    elif type(error).__module__.partition(".")[0] in ("mlflow", "sqlalchemy", "sqlite3"):
        return next((told.format(store) for text, told in _SQLITE.items() if text in str(error)), None)
    return None
