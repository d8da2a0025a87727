"""R-48: jumps of the machine's clock; deadlines and ages stand on the monotonic one."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import pytest
from serve_world import World
from test_http import ITEMS, event

from lcn.serve.client import Client
from lcn.serve.clock import SteadyClock
from lcn.serve.server import background, open_server
from lcn.serve.settings import ServeConfig

HOUR_S = 3600.0


@dataclass
class Machine:
    """A machine whose clocks the test sets."""

    steady_s: float = 1000.0
    ahead_s: float = 1_700_000_000.0

    def wall_ns(self) -> int:
        return round((self.steady_s + self.ahead_s) * 1e9)

    def steady_ns(self) -> int:
        return round(self.steady_s * 1e9)

    def clock(self) -> SteadyClock:
        return SteadyClock(self.wall_ns, self.steady_ns)


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
def test_a_jump_is_followed_only_when_it_stands(jump_s: float, caplog) -> None:
    machine = Machine()
    clock, start = machine.clock(), 1_700_001_000_000
    assert clock() == start
    machine.ahead_s += jump_s
    with caplog.at_level(logging.WARNING):
        for second in range(1, 60):
            machine.steady_s += 1
            assert clock() == start + 1000 * second
    assert len(caplog.records) == 1
    machine.ahead_s -= jump_s  # it was a mistake
    machine.steady_s += 1
    assert clock() == start + 60_000
    machine.ahead_s += jump_s  # and now for good
    for _ in range(61):
        machine.steady_s += 1
        last = clock()
    assert last == start + 121_000 + round(1000 * jump_s)


def test_small_corrections_are_followed_exactly() -> None:
    """What a client stamps with the machine's time is never in this clock's future."""
    machine = Machine()
    clock = machine.clock()
    for step in range(200):
        machine.steady_s += 0.25
        machine.ahead_s += 0.4 if step % 3 else -0.7
        assert clock() == machine.wall_ns() // 1_000_000


def test_jumps_one_after_the_other_begin_anew() -> None:
    machine = Machine()
    clock = machine.clock()
    for _ in range(10):
        machine.ahead_s += 10.0
        machine.steady_s += 30
        last = clock()
    assert last == 1_700_001_300_000


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
def test_a_server_whose_clock_jumps(tmp_path, world: World, jump_s: float) -> None:
    """Nothing becomes visible early, nothing stored disappears, deadlines hold."""
    machine = Machine(time.monotonic(), time.time() - time.monotonic())
    config = ServeConfig(port=0, data_dir=str(tmp_path), durability="everysec", audit_s=0.0,
                         deadline_ms=20_000.0)  # fmt: skip
    running = open_server(config, [world.bundle], now=machine.clock())
    with background(running) as url, Client(url, timeout=60) as client:
        now = machine.wall_ns() // 1_000_000
        soon = event(1, "u", time=now + 4 * 60_000)
        ack = client.add([event(0, "u", time=now), soon])
        assert ack.outcomes == ["stored", "stored"]
        before = client.rank("u", ITEMS)
        machine.ahead_s += jump_s
        machine.steady_s += 1
        # What is stored waits until its own time; what is new is judged by the time it really is.
        assert client.rank("u", ITEMS).scores == before.scores
        far = event(2, "u", time=now + 30 * 60_000)
        fresh = event(3, "u", time=now + 500)
        assert client.add([far, fresh]).outcomes == ["future", "stored"]
        seen = client.rank("u", ITEMS)
        assert seen.degraded is None
        assert seen.scores != before.scores
        machine.ahead_s -= jump_s
        machine.steady_s += 4 * 60
        assert client.rank("u", ITEMS).scores != seen.scores  # its time has come
