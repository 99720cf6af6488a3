"""What each backend can do stands in one place, and a deadline is one for all that is waited for."""

import asyncio
import inspect
import time
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import get_args

import pytest

from mesh_lab.errors import NotReadyError, SettingsError
from mesh_lab.servers.backend import BACKENDS, Backend, traits_of
from mesh_lab.servers.config import Ports, ServerConfig
from mesh_lab.servers.layout import plan
from mesh_lab.servers.readiness import Deadline, View, wait_for
from mesh_lab.servers.start import start_mesh


def test_every_backend_has_traits_and_a_way_to_start() -> None:
    assert set(get_args(Backend)) == set(BACKENDS)
    for name in BACKENDS:
        traits = traits_of(name)
        assert traits.label
        start = resolve_name(traits.start)
        assert inspect.iscoroutinefunction(start)
        assert list(inspect.signature(start).parameters) == ["request"]
        if traits.configurable:
            assert "kill" in traits.gives, "whoever sets servers up may stop them"


async def test_a_backend_that_was_made_up_is_refused_with_those_there_are() -> None:
    with pytest.raises(SettingsError, match="^backend 'podman' asked for, expected one of local, docker, external$"):
        traits_of("podman")
    with pytest.raises(SettingsError, match="backend 'podman' asked for"):
        await start_mesh(backend="podman")  # type: ignore[arg-type]


async def _connect(**_: object) -> None:
    raise AssertionError("these probes connect nowhere")


VIEW = View({}, plan(1), _connect)  # type: ignore[arg-type]


async def test_probes_run_in_order_until_nothing_is_missing() -> None:
    seen = []

    async def first(view: View) -> str:
        seen.append("first")
        return "" if len(seen) == 3 else "a route"

    async def second(view: View) -> str:
        seen.append("second")
        return ""

    await wait_for(VIEW, [first, second], Deadline(20.0))
    assert seen == ["first", "first", "first", "second"]


async def test_one_deadline_is_shared_and_the_error_names_all_of_the_time() -> None:
    async def soon(view: View) -> str:
        return "" if deadline.left < 0.2 else "patience"

    async def never(view: View) -> str:
        return "a leader"

    deadline = Deadline(0.4)
    began = time.monotonic()
    with pytest.raises(NotReadyError, match=r"^mesh not ready after 0\.4 s: a leader$") as info:
        await wait_for(VIEW, [soon, never], deadline)
    assert 0.4 <= time.monotonic() - began < 5.0
    assert (info.value.waited_s, info.value.missing) == (0.4, "a leader")


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_probe_that_hangs_is_cut_off_at_the_deadline(stubborn: bool) -> None:
    cancelled = 0

    async def hangs(view: View) -> str:
        nonlocal cancelled
        while True:
            try:
                await asyncio.sleep(60)  # hangs
            except asyncio.CancelledError:
                cancelled += 1
                if not stubborn or cancelled == 2:  # as where a library swallows the first one
                    raise

    began = time.monotonic()
    with pytest.raises(NotReadyError, match=r"^mesh not ready after 0\.3 s: the servers have not replied$"):
        await wait_for(VIEW, [hangs], Deadline(0.3))
    assert time.monotonic() - began < 5.0
    assert cancelled == 1 + stubborn


async def test_what_a_probe_raises_is_passed_on() -> None:
    async def ends(view: View) -> str:
        raise ValueError("a server ended")

    with pytest.raises(ValueError, match="a server ended"):
        await wait_for(VIEW, [ends], Deadline(20.0))


def test_a_configuration_is_a_value_and_what_changes_is_what_was_changed() -> None:
    passwords = {"lab": "secret", "sys": "of ours", "route": "of theirs"}
    config = ServerConfig("n1", ports=Ports(4222, 8222, cluster=6222), store=Path("store"), passwords=passwords)
    lines = config.render().splitlines()
    users = replace(config, extra=config.extra._replace(users="{ nkey: U }")).render().splitlines()
    off = replace(config, jetstream=False).render().splitlines()
    assert [new for old, new in zip(lines, users, strict=True) if old != new] == ["{ nkey: U }"]
    assert [new for old, new in zip(lines, off, strict=True) if old != new] == [
        'jetstream { enabled: false, store_dir: "store", max_mem: 1GB, max_file: 8GB'
    ]
    assert passwords["lab"] in config.render()
    assert not any(password in repr(config) for password in passwords.values())
