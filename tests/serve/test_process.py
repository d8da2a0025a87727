"""`lcn export` and `lcn serve` as a person runs them: started, used, stopped. S-17."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
from click.testing import CliRunner
from test_http import ITEMS, event

from lcn.cli import cli
from lcn.serve.client import Answer, Client, Refused
from lcn.serve.store.lmdb_store import LmdbStore


def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    """A server process and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lcn", "serve", *arguments, "--port", "0"],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "serving on" in line:
            return process, line.split()[-1]
    process.stderr.close()
    raise AssertionError("".join(said))


def test_a_stopped_server_finishes_and_keeps_what_it_acknowledged(tmp_path: Path, world) -> None:
    data = tmp_path / "data"
    process, url = start(str(world.bundle), "--data-dir", str(data))
    acknowledged, failures = [], []

    def write() -> None:
        with Client(url) as client:
            number = 0
            while True:
                try:
                    ack = client.add([event(number, "u")])
                    client.rank("u", ITEMS, deadline_ms=20_000)
                except Refused as error:
                    failures.append(error.status)
                    return
                except Exception:  # the connection ends with the server
                    return
                assert ack.durability == "always"
                acknowledged.append(number)
                number += 1

    thread = threading.Thread(target=write)
    thread.start()
    while len(acknowledged) < 5:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    thread.join()
    assert process.stderr is not None
    process.stderr.close()
    assert set(failures) <= {503}
    from lcn.serve.settings import ServeConfig

    store = LmdbStore(data / "store", ("kind",), ServeConfig().limits(20))
    assert len(store.read("u", 0).source) >= len(acknowledged)
    store.close()


def test_a_taken_port_and_a_wrong_setting_are_said_plainly(tmp_path: Path, world) -> None:
    def run(*more: str) -> str:
        result = CliRunner().invoke(
            cli, ["serve", str(world.bundle), "--data-dir", str(tmp_path / "d"), *more]
        )
        assert result.exit_code != 0
        return str(result.exception) + result.output

    assert "did you mean 'cache_mib'" in run("--set", "cache_mb=5")
    assert "not a bundle" in str(
        CliRunner().invoke(cli, ["serve", str(tmp_path), "--data-dir", str(tmp_path)]).exception
    )


def test_export_makes_what_serve_needs(tmp_path: Path, toy) -> None:
    from serve_world import named_toy

    from lcn.api import recipe, train

    dataset = named_toy(tmp_path / "data")
    overrides = ["train.epochs=1", "model.width=8", "model.field_width=8", "model.short.width=8",
                 "model.backbone.width=8", "model.hidden=[8]"]  # fmt: skip
    run = tmp_path / "run"
    train(recipe("lap", dataset.folder, *overrides), run)
    result = CliRunner().invoke(cli, ["export", str(run), str(tmp_path / "bundle")])
    assert result.exit_code == 0, result.output
    assert "next: lcn serve" in result.output
    assert "warning" not in result.output
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["name"] == "lap"
    assert set(manifest["trained"]) >= {"step"}
    from lcn.serve.bundle import load_bundle

    assert load_bundle(tmp_path / "bundle").manifest.version == manifest["version"]


def test_export_says_which_keys_no_request_can_name(tmp_path: Path, world, monkeypatch) -> None:
    """They train like any other; the server's interface refuses them."""
    from serve_world import named_toy

    from lcn.serve.bundle import read_bundle_manifest
    from lcn.serve.names import NameTables, read_names, unaskable

    manifest = read_bundle_manifest(world.bundle)
    names = read_names(named_toy(tmp_path / "data").folder)
    assert unaskable(names) == {}
    users, items = (each["key"].to_pylist() for each in (names.users, names.items))
    users[1:4], items[1:4] = ["u" * 65, "ü" * 64, "two\nlines"], ["i" * 257, "ß" * 256, "\x85"]
    odd = NameTables(
        names.items.set_column(1, "key", pa.array(items)),
        names.users.set_column(1, "key", pa.array(users)),
        names.values,
    )
    assert unaskable(odd) == {"users": ["u" * 65, "two\nlines"], "items": ["i" * 257, "\x85"]}
    monkeypatch.setattr("lcn.serve.bundle.export_run", lambda *_, **__: manifest)
    monkeypatch.setattr("lcn.serve.names.read_names", lambda folder: odd)
    result = CliRunner().invoke(cli, ["export", "run", "bundle"])
    assert result.exit_code == 0, result.output
    assert f"name 2 of the users, such as '{'u' * 60}'" in result.stderr
    assert f"name 2 of the items, such as '{'i' * 60}'" in result.stderr


def test_two_servers_share_a_redis_store(tmp_path: Path, world, redis_url: str) -> None:
    from test_http import live

    with (
        live(tmp_path / "a", world.bundle, store=redis_url) as (_, one),
        live(tmp_path / "b", world.bundle, store=redis_url) as (_, other),
    ):
        for number in range(6):
            writer, reader = (one, other) if number % 2 else (other, one)
            ack = writer.add([event(number, "shared")])
            assert ack.durability == "everysec"
            answer = whole(reader, "shared")
            assert answer.state_version >= ack.state_versions["shared"]
            assert answer.scores == whole(writer, "shared").scores
        assert one.delete("shared")
        assert whole(other, "shared").state_version == 0


def whole(client: Client, user: str) -> Answer:
    """An answer with nothing left out: on a starved machine the store may be late at first."""
    for _ in range(20):
        answer = client.rank(user, ITEMS)
        if answer.degraded is None:
            break
    return answer
