"""Tokens: one per purpose, compared in constant time, read again when their file changes."""

from __future__ import annotations

import hmac
import ipaddress
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

from lcn.errors import ServeError

Scope = Literal["rank", "ingest", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
Verdict = Literal["yes", "unknown", "other scope"]


@dataclass(frozen=True, slots=True)
class _Read:
    stamp: tuple[int, int]
    tokens: Mapping[str, tuple[bytes, ...]]


class Tokens:
    """Tokens in a JSON file: {"rank": ["..."], "ingest": [...], "admin": [...]}.

    Several tokens of a scope are all good, so that one can be replaced without a gap; the file is
    read again when it changes.

    Raises:
        ServeError: the file cannot be read or has another shape.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = self._read()

    def verdict(self, scope: Scope, token: str) -> Verdict:
        """Whether a token opens a scope."""
        self._refresh()
        given = token.encode()
        # Every token is compared, whatever the result, so that time tells nothing.
        found = {
            name: any([hmac.compare_digest(given, each) for each in tokens])
            for name, tokens in self._known.tokens.items()
        }
        if found.get(scope):
            return "yes"
        return "other scope" if any(found.values()) else "unknown"

    def _refresh(self) -> None:
        try:
            if _stamp(self.path) != self._known.stamp:
                self._known = self._read()
        except (OSError, ServeError):
            return  # half-written or gone: the tokens known so far stay good

    def _read(self) -> _Read:
        try:
            stamp = _stamp(self.path)
            tree = json.loads(self.path.read_text())
            tokens = {
                scope: tuple(str(each).encode() for each in tree.get(scope, ())) for scope in SCOPES
            }
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise ServeError(f"cannot read tokens from {self.path}: {error}") from error
        short = [scope for scope, known in tokens.items() if any(len(each) < 16 for each in known)]
        if short:
            raise ServeError(f"{self.path}: a token of {short[0]!r} is shorter than 16 characters")
        return _Read(stamp, tokens)


def tokens_for(path: Path | None, data_dir: Path, *, loopback: bool) -> Tokens | None:
    """The tokens of a server: given ones; made ones beyond loopback; none on loopback.

    Args:
        path: a file given by the user.
        data_dir: where made tokens go, readable by the owner alone.
        loopback: whether only this machine can connect.
    """
    if path is not None:
        return Tokens(path)
    if loopback:
        return None
    made = data_dir / "tokens.json"
    if not made.exists():
        data_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            json.dump({scope: [secrets.token_urlsafe(32)] for scope in SCOPES}, file, indent=1)
    return Tokens(made)


def foreign(headers: Mapping[str, str]) -> str | None:
    """Why a request to a server without tokens does not come from this machine's own programs;
    None where nothing speaks against it.

    A proxy on this machine would open the server to everybody, and a browser lets pages of other
    sites send requests to it.

    Args:
        headers: of the request, names in lower case.
    """
    for name in ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via"):
        if name in headers:
            return f"a proxy sent it on ({name})"
    if not is_loopback(_host_of(headers.get("host", "localhost"))):
        return f"it asks for the host {headers['host']!r}"
    origin = headers.get("origin")
    if origin is not None and not is_loopback(urlsplit(origin).hostname or ""):
        return f"a page of {origin!r} sent it"
    return None


@lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine for itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=64)
def _host_of(text: str) -> str:
    return urlsplit(f"//{text}").hostname or ""


def _stamp(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_mtime_ns, facts.st_size
