"""What processes keep goes with a copy of the history: as it is, again after a while, and told where it differs."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from diptych.adapters.connect import connect_process_store
from diptych.adapters.memory.process_store import MemoryProcessStore
from diptych.errors import StoreUnavailable
from diptych.event_store.position import Position
from diptych.process_managers import copying
from diptych.process_managers.copying import copy_processes, differing_process
from diptych.process_managers.process_store import ProcessStore
from diptych.testing.contracts.process_store_case import LONG_S, SHIPPING, Writing, begun, instance, item, place
from tests.cli_project import STORE, project_in

pytestmark = pytest.mark.anyio

BILLING = "shop.Billing"


@asynccontextmanager
async def opened(store: ProcessStore) -> AsyncGenerator[ProcessStore]:
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def shipping(store: ProcessStore) -> Writing:
    """A process with instances of every kind, and what waits and was given up; and something that no process has."""
    writing = await begun(store)
    blocked = instance("c", blocked=Position(2), failure="no", attempts=3, trace="Traceback")
    given = [
        item("a", 2, due_us=7, attempts=2, failure="not now", priority=3, expires_us=9),
        item("b", kind="timeout", tags=("x:y",), due_us=8),
        item("c", dead=True, failure="no", trace="Traceback"),
    ]
    ended = instance("b", ended=True, failure="closed by hand: x")
    await writing.commit(5, instances=[instance("a"), ended, blocked], added=given)
    await store.add("(scheduled)", [item("s-1", due_us=99, begun=True)])
    await store.create("(scheduled)", place(0), "")
    return writing


def quietly(done: int, total: int | None) -> None:
    del done, total


async def test_all_of_it_is_copied(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fits into a page; and again, where the source has gone on: what is gone there is gone here."""
    monkeypatch.setattr(copying, "COPY_PAGE_MAX", 2)
    async with opened(MemoryProcessStore()) as source, opened(connect_process_store(store_url)) as target:
        writing = await shipping(source)
        assert await copy_processes(source, target, place(5), quietly) == 2
        assert await differing_process(source, target, place(5)) is None
        assert [found.checkpoint for found in await target.processes()] == [place(0), place(5)]
        assert await target.page(SHIPPING, None, 9, ended=True) == await source.page(SHIPPING, None, 9, ended=True)
        for process in (SHIPPING, "(scheduled)"):
            assert await target.waiting(process, None, 9) == await source.waiting(process, None, 9)
        failed = item("b", kind="timeout", tags=("x:y",), due_us=8, attempts=1, failure="not now")
        await writing.commit(6, removed=[item("a", 2).id], failed=[failed], instances=[instance("a", state=b"[1]")])
        await copy_processes(source, target, place(6), quietly)
        assert await differing_process(source, target, place(6)) is None
        assert await target.waiting(SHIPPING, None, 9) == await source.waiting(SHIPPING, None, 9)


async def test_a_copy_is_worked_on_as_the_original_was(store_url: str) -> None:
    """Its lease is free, and what is due goes out from there."""
    async with opened(MemoryProcessStore()) as source, opened(connect_process_store(store_url)) as target:
        await shipping(source)
        await copy_processes(source, target, place(5), quietly)
        assert list(await target.lease("a worker", [SHIPPING], LONG_S)) == [SHIPPING]
        assert [each.id for each in await target.due(SHIPPING, 7, 9)] == [item("a", 2).id]


async def test_what_is_beyond_the_copy_of_the_history_is_left_for_the_next_run() -> None:
    """Its checkpoint names an event that is not there yet."""
    async with opened(MemoryProcessStore()) as source, opened(MemoryProcessStore()) as target:
        await shipping(source)
        await copy_processes(source, target, place(4), quietly)
        assert [found.name for found in await target.processes()] == ["(scheduled)"]
        assert await differing_process(source, target, place(4)) is None
        assert await differing_process(source, target, place(5)) is not None


async def test_nothing_is_copied_over_who_works_there() -> None:
    """Two that send the same would be two truths."""
    async with opened(MemoryProcessStore()) as source, opened(MemoryProcessStore()) as target:
        await shipping(source)
        await target.create(SHIPPING, place(0), "")
        await target.lease("a worker", [SHIPPING], LONG_S)
        with pytest.raises(StoreUnavailable, match="somebody works on the process shop.Shipping"):
            await copy_processes(source, target, place(5), quietly)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda store: store._kept.pop(SHIPPING), "at another place"),
        (lambda store: store._kept[SHIPPING].instances.pop("c"), "instances of the process shop.Shipping"),
        (lambda store: store._outgoing[SHIPPING].popitem(), "waits to go out of shop.Shipping"),
        (lambda store: store._outgoing["(scheduled)"].clear(), r"waits to go out of \(scheduled\)"),
    ],
)
async def test_what_differs_is_told(
    change: Callable[[MemoryProcessStore], object], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On whichever page it is."""
    monkeypatch.setattr(copying, "COPY_PAGE_MAX", 2)
    target = MemoryProcessStore()
    async with opened(MemoryProcessStore()) as source, opened(target):
        await shipping(source)
        await copy_processes(source, target, place(5), quietly)
        change(target)
        difference = await differing_process(source, target, place(5))
        assert difference is not None
        assert told.replace("\\", "") in difference


def test_the_command_copies_what_was_scheduled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits in the copy as it did in the original, and is verified with the rest."""
    with project_in(tmp_path, monkeypatch) as project:
        project.enrol("python")
        project.settings(f'app = ["{project.context}"]\n')
        project.schedule("sql")
        assert project.run("copy", "--from", STORE, "--to", "sqlite:copy.db").code == 0
        assert project.run("copy", "--from", STORE, "--to", "sqlite:copy.db", "--verify").code == 0
        stores = (STORE, "sqlite:copy.db")
        listed = [project.run("scheduled", "list", "--store", store, "--json").out for store in stores]
        assert listed[0] == listed[1]
        (waiting,) = [json.loads(line) for line in listed[0].splitlines()]
        assert waiting["data"] == {"course": "sql"}
