"""Errors meant for the person at the keyboard: what was got, what was expected, what to do."""

import difflib
from collections.abc import Iterable


class LcnError(Exception):
    """A problem the user can mend; the command line prints it without a traceback."""


class DataError(LcnError):
    """Logs, a mapping file or a dataset folder are not what they should be."""


class ConfigError(LcnError):
    """A configuration has an unknown key or an impossible value."""


class CheckpointError(LcnError):
    """A checkpoint or bundle is damaged or belongs to another model or dataset."""


class StoreError(LcnError):
    """The behaviour store is damaged, full, unreachable or made for other fields."""


class StoreFullError(StoreError):
    """The behaviour store has no room for more events."""


class ServeError(LcnError):
    """A server cannot start or a request to it failed."""


class TrainingError(LcnError):
    """Training had to stop; the parameters are those before the offending step."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest known name, or the list of known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known names: {', '.join(names)}" if names else "; there are none"
