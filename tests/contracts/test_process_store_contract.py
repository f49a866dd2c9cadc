"""The process store's contract is itself proven: whichever guarantee a store breaks, a test of the contract fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from diptych.adapters.memory.process_store import MemoryProcessStore
from diptych.event_store.position import Place, Position
from diptych.process_managers.process_store import (
    Instance,
    InstanceCount,
    Outgoing,
    ProcessChange,
    ProcessStore,
    StoredProcess,
)
from diptych.testing.contracts.process_store import ProcessStoreContract

FAR = 1 << 30
"""More than anything has."""


class MadeAgain(MemoryProcessStore):
    """Makes a process anew that is there."""

    async def create(self, process: str, checkpoint: Place, fingerprint: str) -> StoredProcess:
        if process in self._kept:
            self._kept[process].stored = StoredProcess(process, checkpoint, fingerprint, 0)
        return await super().create(process, checkpoint, fingerprint)


class NoFence(MemoryProcessStore):
    """Takes a commit from wherever its writer thinks it is."""

    async def commit(self, change: ProcessChange) -> bool:
        found = [stored for stored in await self.processes() if stored.name == change.process]
        after = found[0].checkpoint if found else change.after
        return await super().commit(msgspec.structs.replace(change, after=after))


class PositionsOnly(MemoryProcessStore):
    """Compares the positions of checkpoints, and not the events there."""

    async def commit(self, change: ProcessChange) -> bool:
        found = [stored.checkpoint for stored in await self.processes() if stored.name == change.process]
        if found and found[0].position == change.after.position:
            change = msgspec.structs.replace(change, after=found[0])
        return await super().commit(change)


class NoEpochs(MemoryProcessStore):
    """Takes a commit of whoever held the process once."""

    async def commit(self, change: ProcessChange) -> bool:
        found = [stored.epoch for stored in await self.processes() if stored.name == change.process]
        return await super().commit(msgspec.structs.replace(change, epoch=found[0] if found else 0))


class ChangesThoughRefused(MemoryProcessStore):
    """Keeps the instances of a commit that it refuses: they are in another transaction."""

    async def commit(self, change: ProcessChange) -> bool:
        done = await super().commit(change)
        if not done and change.process in self._kept:
            self._kept[change.process].instances |= {instance.id: instance for instance in change.instances}
        return done


class LosesWhatGoesOut(MemoryProcessStore):
    """Keeps the checkpoint without what is to go out."""

    async def commit(self, change: ProcessChange) -> bool:
        return await super().commit(msgspec.structs.replace(change, added=()))


class RemovesLast(MemoryProcessStore):
    """Takes out what has just come in, where an instance is emptied."""

    async def commit(self, change: ProcessChange) -> bool:
        done = await super().commit(change)
        for item in change.added if done else ():
            if item.instance in change.emptied:
                self._kept[change.process].outgoing.pop(item.id, None)
        return done


class DropsCommandsToo(MemoryProcessStore):
    """Takes the commands of an ended instance with its timeouts."""

    async def commit(self, change: ProcessChange) -> bool:
        emptied = [*change.emptied, *change.dropped_timeouts]
        return await super().commit(msgspec.structs.replace(change, emptied=emptied))


class FailedComesBack(MemoryProcessStore):
    """Keeps what failed, also where it is gone."""

    async def commit(self, change: ProcessChange) -> bool:
        done = await super().commit(change)
        if done:
            self._kept[change.process].outgoing |= {item.id: item for item in change.failed}
        return done


class RevivesAll(MemoryProcessStore):
    """Revives what is dead of every instance."""

    async def commit(self, change: ProcessChange) -> bool:
        if change.revived:
            everyone = {item.instance for item in self._kept[change.process].outgoing.values()}
            change = msgspec.structs.replace(change, revived=everyone)
        return await super().commit(change)


class LeasesToAll(MemoryProcessStore):
    """Gives everybody what they ask for."""

    async def lease(self, worker: str, processes: Collection[str], ttl_s: float) -> Mapping[str, int]:
        for kept in self._kept.values():
            kept.lease = None
        return await super().lease(worker, processes, ttl_s)


class RenewalFences(MemoryProcessStore):
    """Raises the epoch with each renewal."""

    async def lease(self, worker: str, processes: Collection[str], ttl_s: float) -> Mapping[str, int]:
        held = await super().lease(worker, processes, ttl_s)
        for name in held:
            self._kept[name].fence()
        return {name: self._kept[name].stored.epoch for name in held}


class ReleaseWithoutFence(MemoryProcessStore):
    """Lets whoever released a process commit until another has it."""

    async def release(self, worker: str, processes: Collection[str] | None = None) -> None:
        epochs = {name: kept.stored for name, kept in self._kept.items()}
        await super().release(worker, processes)
        for name, stored in epochs.items():
            self._kept[name].stored = stored


class ReleasesEverything(MemoryProcessStore):
    """Gives up more than it was asked to."""

    async def release(self, worker: str, processes: Collection[str] | None = None) -> None:
        await super().release(worker)


class ReleasesOthers(MemoryProcessStore):
    """Gives up what is named, whoever holds it."""

    async def release(self, worker: str, processes: Collection[str] | None = None) -> None:
        for name in processes or ():
            if name in self._kept:
                self._kept[name].last_holder = worker
        await super().release(worker, processes)


class AllAtOnce(MemoryProcessStore):
    """Gives every command of an instance at once."""

    async def due(self, process: str, now_us: int, limit: int) -> list[Outgoing]:
        items = [item for item in self._of(process).outgoing.values() if item.due_us <= now_us and not item.dead]
        return sorted(items, key=lambda item: (item.due_us, item.position, item.ordinal))[:limit]


class DeadHoldsAll(MemoryProcessStore):
    """Lets a dead command hold back all that its instance sends later."""

    async def due(self, process: str, now_us: int, limit: int) -> list[Outgoing]:
        stuck = {item.instance for item in self._of(process).outgoing.values() if item.dead and item.kind == "command"}
        return [item for item in await super().due(process, now_us, limit) if item.instance not in stuck]


class DeadHoldsNothing(MemoryProcessStore):
    """Sends what comes after a dead command of the same reaction."""

    async def due(self, process: str, now_us: int, limit: int) -> list[Outgoing]:
        kept = self._of(process)
        everything, kept.outgoing = (
            kept.outgoing,
            {found: item for found, item in kept.outgoing.items() if not item.dead},
        )
        found = await super().due(process, now_us, limit)
        kept.outgoing = everything
        return found


class DueInAnyOrder(MemoryProcessStore):
    """Gives what is due from the last."""

    async def due(self, process: str, now_us: int, limit: int) -> list[Outgoing]:
        return (await super().due(process, now_us, limit))[::-1]


class DueTooEarly(MemoryProcessStore):
    """Gives what is due a little later as well."""

    async def due(self, process: str, now_us: int, limit: int) -> list[Outgoing]:
        return await super().due(process, now_us + 1, limit)


class NextIsTheFirst(MemoryProcessStore):
    """Tells when the first thing is due, also where that is over."""

    async def next_due_us(self, process: str, after_us: int) -> int | None:
        return await super().next_due_us(process, -1)


class PagesSkip(MemoryProcessStore):
    """Leaves the first instance of each later page out."""

    async def page(self, process: str, after: str | None, limit: int, **which: Any) -> list[Instance]:
        found = await super().page(process, after, limit, **which)
        return found[1:] if after else found


class PagesBeginBehindNothing(MemoryProcessStore):
    """Takes what has the empty name for what comes before the first."""

    async def page(self, process: str, after: str | None, limit: int, **which: Any) -> list[Instance]:
        return await super().page(process, after or "", limit, **which)


class CountsTheEnded(MemoryProcessStore):
    """Counts every instance as running."""

    async def count(self, process: str) -> InstanceCount:
        found = await super().count(process)
        return msgspec.structs.replace(found, running=len(self._of(process).instances))


class ForgetsOnClosing(MemoryProcessStore):
    """Keeps nothing while it is closed."""

    async def close(self) -> None:
        await super().close()
        self._kept.clear()


class AnswersWhenClosed(MemoryProcessStore):
    """Goes on after it was closed."""

    def _check_open(self) -> None:
        pass


class OneForAll(MemoryProcessStore):
    """Mixes up the processes."""

    async def instances(self, process: str, ids: Collection[str]) -> list[Instance]:
        everyone = [kept for _, kept in sorted(self._kept.items())]
        return [kept.instances[name] for kept in everyone[:1] for name in ids if name in kept.instances]


class AnyPriority(MemoryProcessStore):
    """Gives what is due by time alone."""

    async def due(self, process: str, now_us: int, limit: int) -> list[Outgoing]:
        found = await super().due(process, now_us, FAR)
        return sorted(found, key=lambda item: (item.due_us, item.position, item.ordinal))[:limit]


class NextOfTheHighest(MemoryProcessStore):
    """Tells when the next thing of the highest priority is due."""

    async def next_due_us(self, process: str, after_us: int) -> int | None:
        later = [item for item in self._of(process).outgoing.values() if item.due_us > after_us and not item.dead]
        return max(later, key=lambda item: item.priority).due_us if later else None


class NeverBegins(MemoryProcessStore):
    """Does not note what is begun."""

    async def commit(self, change: ProcessChange) -> bool:
        return await super().commit(msgspec.structs.replace(change, begun=()))


class BegunForEver(MemoryProcessStore):
    """Takes what is revived for under way."""

    async def commit(self, change: ProcessChange) -> bool:
        outgoing = self._kept[change.process].outgoing
        begun = {item.id for item in outgoing.values() if item.begun and item.instance in change.revived}
        return await super().commit(msgspec.structs.replace(change, begun=[*change.begun, *begun]))


class AddsOver(MemoryProcessStore):
    """Replaces what is there under an id."""

    async def add(self, process: str, items: Sequence[Outgoing]) -> list[Outgoing]:
        await self.drop(process, [item.id for item in items])
        return await super().add(process, items)


class AnswersWithTheLast(MemoryProcessStore):
    """Says that it kept what it was given, also where it did not."""

    async def add(self, process: str, items: Sequence[Outgoing]) -> list[Outgoing]:
        await super().add(process, items)
        return list(items)


class AddsToTheMade(MemoryProcessStore):
    """Loses what is added before the process is made."""

    async def add(self, process: str, items: Sequence[Outgoing]) -> list[Outgoing]:
        return await super().add(process, items) if process in self._kept else list(items)


class OneIdForAll(MemoryProcessStore):
    """Takes an id for that of another process's."""

    async def add(self, process: str, items: Sequence[Outgoing]) -> list[Outgoing]:
        known = {found: item for outgoing in self._outgoing.values() for found, item in outgoing.items()}
        found = [known.get(item.id, item) for item in items]
        added = await super().add(process, [item for item in found if item.id not in known])
        return [item if item.id in known else added.pop(0) for item in found]


class RevivesTheLiving(MemoryProcessStore):
    """Has what waits by itself due again as well."""

    async def revive(self, process: str, ids: Collection[str], due_us: int) -> None:
        for item in await self.find(process, ids):
            self._of(process).outgoing[item.id] = msgspec.structs.replace(item, dead=True)
        await super().revive(process, ids, due_us)


class DropsEverywhere(MemoryProcessStore):
    """Drops an id of every process."""

    async def drop(self, process: str, ids: Collection[str]) -> None:
        for name in list(self._outgoing):
            await super().drop(name, ids)


class WaitingInAnyOrder(MemoryProcessStore):
    """Gives what waits as it came."""

    async def waiting(self, process: str, after: str | None, limit: int) -> list[Outgoing]:
        items = self._of(process).outgoing.values()
        return [item for item in items if after is None or item.id > after][:limit]


class WaitingWithoutTheDead(MemoryProcessStore):
    """Leaves out what was given up."""

    async def waiting(self, process: str, after: str | None, limit: int) -> list[Outgoing]:
        return [item for item in await super().waiting(process, after, limit) if not item.dead]


class DeadOrNot(MemoryProcessStore):
    """Gives what waits along with the dead."""

    async def dead(self, process: str, after: tuple[str, str] | None, limit: int) -> list[Outgoing]:
        items = sorted(self._of(process).outgoing.values(), key=lambda item: (item.instance, item.id))
        return [item for item in items if after is None or (item.instance, item.id) > after][:limit]


class ResendsWhatWaits(MemoryProcessStore):
    """Has something sent anew that was not given up."""

    async def commit(self, change: ProcessChange) -> bool:
        outgoing = self._kept[change.process].outgoing
        for resent in change.resent:
            if resent.id in outgoing:
                outgoing[resent.id] = msgspec.structs.replace(outgoing[resent.id], dead=True)
        return await super().commit(change)


class ResendsLast(MemoryProcessStore):
    """Puts what is sent with other fields behind everything else of its instance."""

    async def commit(self, change: ProcessChange) -> bool:
        done = await super().commit(change)
        outgoing = self._kept[change.process].outgoing
        for resent in change.resent:
            if resent.data is not None and resent.as_id in outgoing:
                outgoing[resent.as_id] = msgspec.structs.replace(outgoing[resent.as_id], position=Position(99))
        return done


class ResendsWithTheOldFields(MemoryProcessStore):
    """Sends what it was, under the new id."""

    async def commit(self, change: ProcessChange) -> bool:
        resent = [msgspec.structs.replace(each, data=None) for each in change.resent]
        return await super().commit(msgspec.structs.replace(change, resent=resent))


class DiscardsWhatWaits(MemoryProcessStore):
    """Drops what is named, whether it was given up or not."""

    async def commit(self, change: ProcessChange) -> bool:
        removed = [*change.removed, *change.discarded]
        return await super().commit(msgspec.structs.replace(change, removed=removed))


class ForgetsTraces(MemoryProcessStore):
    """Keeps the one line of a failure alone."""

    async def commit(self, change: ProcessChange) -> bool:
        instances = [msgspec.structs.replace(each, trace="") for each in change.instances]
        failed = [msgspec.structs.replace(each, trace="") for each in change.failed]
        return await super().commit(msgspec.structs.replace(change, instances=instances, failed=failed))


class DeadPagesSkip(MemoryProcessStore):
    """Takes the instance alone for where the next page of the dead begins."""

    async def dead(self, process: str, after: tuple[str, str] | None, limit: int) -> list[Outgoing]:
        return await super().dead(process, after and (after[0], "~"), limit)


BROKEN = [
    (MadeAgain, "test_a_process_is_made_once"),
    (NoFence, "test_a_commit_from_another_checkpoint_does_nothing"),
    (NoFence, "test_of_many_commits_from_one_place_one_holds"),
    (PositionsOnly, "test_a_commit_from_another_checkpoint_does_nothing"),
    (NoEpochs, "test_a_worker_that_lost_the_lease_commits_nothing"),
    (NoEpochs, "test_a_release_fences_at_once"),
    (ChangesThoughRefused, "test_a_commit_from_another_checkpoint_does_nothing"),
    (LosesWhatGoesOut, "test_what_was_committed_is_there_for_others"),
    (RemovesLast, "test_a_change_takes_out_before_it_puts_in"),
    (DropsCommandsToo, "test_a_change_takes_out_before_it_puts_in"),
    (FailedComesBack, "test_what_failed_is_kept_as_it_is_given"),
    (RevivesAll, "test_the_dead_are_revived_together"),
    (LeasesToAll, "test_one_holds_what_another_does_not"),
    (RenewalFences, "test_one_holds_what_another_does_not"),
    (ReleaseWithoutFence, "test_a_release_fences_at_once"),
    (ReleasesEverything, "test_one_process_is_released_alone"),
    (ReleasesOthers, "test_one_process_is_released_alone"),
    (AllAtOnce, "test_commands_of_an_instance_go_one_after_the_other"),
    (DeadHoldsAll, "test_a_dead_command_holds_back_its_own_reaction_alone"),
    (DeadHoldsNothing, "test_a_dead_command_holds_back_its_own_reaction_alone"),
    (DueInAnyOrder, "test_what_is_due_comes_in_its_order"),
    (DueTooEarly, "test_what_is_due_comes_in_its_order"),
    (NextIsTheFirst, "test_the_next_due_time_is_told"),
    (PagesSkip, "test_instances_come_in_pages"),
    (PagesBeginBehindNothing, "test_instances_come_in_pages"),
    (CountsTheEnded, "test_what_is_stuck_is_found"),
    (ForgetsOnClosing, "test_it_survives_being_closed"),
    (AnswersWhenClosed, "test_a_closed_store_says_so"),
    (OneForAll, "test_processes_are_apart"),
    (AnyPriority, "test_a_higher_priority_goes_first"),
    (NextOfTheHighest, "test_a_higher_priority_goes_first"),
    (NeverBegins, "test_what_is_begun_is_noted"),
    (BegunForEver, "test_what_is_begun_is_noted"),
    (AddsOver, "test_what_is_there_under_an_id_stays"),
    (AnswersWithTheLast, "test_what_is_there_under_an_id_stays"),
    (AnswersWithTheLast, "test_of_many_that_add_one_id_one_is_kept"),
    (AddsToTheMade, "test_anybody_adds_what_is_to_go_out"),
    (OneIdForAll, "test_what_is_there_under_an_id_stays"),
    (RevivesTheLiving, "test_anybody_drops_and_revives"),
    (DropsEverywhere, "test_anybody_drops_and_revives"),
    (WaitingInAnyOrder, "test_what_waits_comes_in_pages"),
    (WaitingWithoutTheDead, "test_what_waits_comes_in_pages"),
    (DeadOrNot, "test_the_dead_come_in_pages"),
    (ResendsWhatWaits, "test_one_that_is_dead_is_due_again_alone"),
    (ResendsLast, "test_one_that_is_dead_is_due_again_alone"),
    (ResendsWithTheOldFields, "test_one_that_is_dead_is_due_again_alone"),
    (DiscardsWhatWaits, "test_only_the_dead_are_discarded"),
    (ForgetsTraces, "test_an_instance_is_replaced_as_a_whole"),
    (ForgetsTraces, "test_what_failed_is_kept_as_it_is_given"),
    (DeadPagesSkip, "test_the_dead_come_in_pages"),
]
"""What is broken, and the test that has to notice."""


def contract_over(store_type: type[MemoryProcessStore]) -> ProcessStoreContract:
    class Contract(ProcessStoreContract):
        shares_place = False

        @asynccontextmanager
        async def place(self) -> AsyncGenerator[Callable[[], ProcessStore]]:
            store = store_type()
            yield lambda: store

    return Contract()


def fails(contract: ProcessStoreContract, name: str) -> bool:
    """Whether a test of the contract ends as a failed one does; any other error comes out."""
    try:
        asyncio.run(getattr(contract, name)())
    except (AssertionError, pytest.fail.Exception):
        return True
    return False


def test_the_contract_has_no_objection_to_the_store_that_the_broken_ones_derive_from() -> None:
    """What the broken stores fail on is what they break, and nothing else."""
    contract = contract_over(MemoryProcessStore)
    names = [name for name in dir(contract) if name.startswith("test_")]
    assert len(names) > 20
    assert [name for name in names if fails(contract, name)] == []


@pytest.mark.parametrize(
    ("store_type", "noticed_by"), BROKEN, ids=[f"{broken.__name__}-{name}" for broken, name in BROKEN]
)
def test_a_broken_store_fails_the_contract(store_type: type[MemoryProcessStore], noticed_by: str) -> None:
    """Each broken guarantee is noticed by the test that is named for it."""
    assert fails(contract_over(store_type), noticed_by)
