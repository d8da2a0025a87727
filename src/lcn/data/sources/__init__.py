"""Where logs come from: each source fetches its files and ends in one `Mapping`.

A newcomer's own logs need no module here: a mapping file is enough (see docs/data.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from lcn.data.mapping import Mapping
from lcn.data.sources import kuairand, movielens, synthetic, taobao
from lcn.errors import ConfigError, DataError, nearest


@dataclass(frozen=True)
class LogSource:
    """One public log, or a generator of logs."""

    about: str
    """One line for listings."""
    licence: str
    """What the user may do with the data; printed when it is fetched."""
    fetch: Callable[[Path, Path | None], Path]
    """(cache folder, folder or file the user already has) -> folder ready for `mapping`."""
    mapping: Callable[..., Mapping]
    """(folder, **options) -> Mapping with absolute paths."""
    options: tuple[str, ...] = ()
    """Options of `mapping`, each with its meaning."""


SOURCES: dict[str, LogSource] = {
    "movielens-1m": LogSource(
        about=movielens.ABOUT,
        licence=movielens.LICENCE,
        fetch=movielens.fetch,
        mapping=movielens.mapping,
    ),
    "taobao-ad": LogSource(
        about=taobao.ABOUT,
        licence=taobao.LICENCE,
        fetch=taobao.fetch,
        mapping=taobao.mapping,
        options=taobao.OPTIONS,
    ),
    "kuairand": LogSource(
        about=kuairand.ABOUT,
        licence=kuairand.LICENCE,
        fetch=kuairand.fetch,
        mapping=kuairand.mapping,
        options=kuairand.OPTIONS,
    ),
    "synthetic": LogSource(
        about=synthetic.ABOUT,
        licence=synthetic.LICENCE,
        fetch=synthetic.fetch,
        mapping=synthetic.mapping,
    ),
}
"""Every built-in source by name."""


def find_source(name: str, options: Iterable[str] = ()) -> LogSource:
    """Return a built-in source that has the options named.

    Raises:
        DataError: unknown name.
        ConfigError: an option that the source does not have.
    """
    if name not in SOURCES:
        raise DataError(f"no source is called {name!r}{nearest(name, SOURCES)}")
    known = [option.partition(":")[0] for option in SOURCES[name].options]
    for option in options:
        if option not in known:
            hint = nearest(option, known) if known else "; it has none"
            raise ConfigError(f"source {name}: unknown option {option!r}{hint}")
    return SOURCES[name]
