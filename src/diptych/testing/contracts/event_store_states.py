"""The part of the event store's contract that keeps states of decision models beside the history (rules 24 and 26)."""

from __future__ import annotations

from diptych.errors import HistoryDiverged
from diptych.event_store.event_store import (
    STATE_BYTES_MAX,
    STATE_KEY_BYTES_MAX,
    Appended,
    Conflicting,
    Duplicate,
    KeptState,
    ModelState,
    Refused,
    StoredState,
)
from diptych.event_store.position import Place, Position
from diptych.testing.contracts.event_store_case import EventStoreCase, commit, condition, event, expect

__all__ = ["StateContract"]

FIRST = ("", "")


def state(data: bytes, key: str = "1", model: str = "shop.Product", fold: str = "a") -> ModelState:
    """What a commit leaves of a model, written short."""
    return ModelState(model, key, fold, data)


class StateContract(EventStoreCase):
    """A commit and what it leaves of decision models: both, or neither."""

    async def test_a_state_is_kept_with_the_events_that_made_it(self) -> None:
        """At the place of its commit's last event, each by model and key; the last one counts, whatever folded it."""
        async with self.two_stores() as (store, other):
            assert await store.model_state("shop.Product", "1") is None
            await store.append([commit(event(), event(), states=[state(b"{}"), state(b"[2]", "2")])])
            assert await other.model_state("shop.Product", "1") == KeptState("a", b"{}", Position(2))
            await other.append([commit(event(), states=[state(b"[3]", fold="b"), state(b"[4]", model="shop.Till")])])
            assert await store.model_state("shop.Product", "1") == KeptState("b", b"[3]", Position(3))
            assert await store.model_state("shop.Product", "2") == KeptState("a", b"[2]", Position(2))
            assert await store.model_state("shop.Till", "1") == KeptState("a", b"[4]", Position(3))
            assert await store.model_state("shop.Till", "2") is None

    async def test_of_one_batch_the_last_state_counts(self) -> None:
        """Each commit leaves what it says at its own place."""
        async with self.store() as store:
            await store.append(
                [
                    commit(event(), states=[state(b"[1]"), state(b"[1]", "2")]),
                    commit(event(), states=[state(b"[2]")]),
                    commit(event()),
                ]
            )
            assert await store.model_state("shop.Product", "1") == KeptState("a", b"[2]", Position(2))
            assert await store.model_state("shop.Product", "2") == KeptState("a", b"[1]", Position(1))

    async def test_what_is_not_appended_leaves_no_state(self) -> None:
        """A conflict, a duplicate or a refusal leaves nothing; the others of its batch do, at their places."""
        async with self.store() as store:
            await store.append([commit(event("A"), command_id="c-1", states=[state(b"[0]")])])
            results = await store.append(
                [
                    commit(event(), conditions=[condition(0, ["A"])], states=[state(b"[1]"), state(b"[1]", "2")]),
                    commit(event(), command_id="c-1", states=[state(b"[2]", "3")]),
                    commit(event(), event(), states=[state(b"[3]", "4")]),
                    commit(event("A", "t", "t"), states=[state(b"[4]", "5")]),
                    commit(event(), states=[state(b"[5]", "6")]),
                ]
            )
            expected = [Conflicting, Duplicate, Appended, Refused, Appended]
            assert [type(result) for result in results] == expected
            found = [await store.model_state("shop.Product", str(key)) for key in range(1, 7)]
            assert found == [
                KeptState("a", b"[0]", Position(1)),
                None,
                None,
                KeptState("a", b"[3]", Position(3)),
                None,
                KeptState("a", b"[5]", Position(4)),
            ]

    async def test_an_outcome_without_events_leaves_no_state(self) -> None:
        """There is no event that it could have been made by."""
        async with self.store() as store:
            (result,) = await store.append([commit(command_id="c-1", states=[state(b"[1]")])])
            expect(Appended, result)
            assert await store.model_state("shop.Product", "1") is None

    async def test_a_state_has_its_limits(self) -> None:
        """What is too large, or no text everywhere, is refused with its commit; at the limit it is not."""
        async with self.store() as store:
            fits = [state(bytes(STATE_BYTES_MAX).replace(b"\0", b"1")), state(b"1", "k" * STATE_KEY_BYTES_MAX)]
            (result,) = await store.append([commit(event(), states=fits)])
            expect(Appended, result)
            for wrong in (
                state(b"1" * (STATE_BYTES_MAX + 1)),
                state(b"1", "k" * (STATE_KEY_BYTES_MAX + 1)),
                state(b"1", "\0"),
                state(b"\0"),
            ):
                (result,) = await store.append([commit(event(), states=[wrong])])
                assert "state of shop.Product" in expect(Refused, result).reason
            assert (await store.head()).position == 1

    # ── in pages, and folded beside commits ──────────────────────────────────

    async def test_all_states_are_listed_in_pages(self) -> None:
        """By model and key, in the order of their code points, each with its position."""
        async with self.two_stores() as (store, other):
            assert await store.model_states(FIRST, 10) == []
            left = [state(b"[1]", key, model) for model in ("b", "a", "é", "B") for key in ("2", "1", "é", "10")]
            await store.append([commit(event(), states=left)])
            await store.append([commit(event(), states=[state(b"[2]", "10", "a", "other")])])
            found: list[StoredState] = []
            while page := await other.model_states((found[-1].model, found[-1].key) if found else FIRST, 5):
                assert len(page) <= 5
                found += page
            names = [(one.model, one.key) for one in found]
            assert names == [(model, key) for model in ("B", "a", "b", "é") for key in ("1", "10", "2", "é")]
            assert found[5] == StoredState("a", "10", "other", b"[2]", position=Position(2))
            assert found[0] == StoredState("B", "1", "a", b"[1]", position=Position(1))

    async def test_what_was_folded_beside_commits_is_kept_where_nothing_later_is(self) -> None:
        """A state of its place; one of the same place or a later one stays as it is."""
        async with self.two_stores() as (store, other):
            await store.append([commit(event(), states=[state(b"[1]")])])
            await store.append([commit(event(), states=[state(b"[2]", "2")])])
            at = await store.head()
            await other.append([commit(event(), states=[state(b"[3]", "3")])])
            folded = [
                StoredState("shop.Product", key, "a", b"[0]", position=Position(2)) for key in ("1", "2", "3", "4")
            ]
            await store.keep_states(folded, at)
            found = [await other.model_state("shop.Product", key) for key in ("1", "2", "3", "4")]
            assert found == [
                KeptState("a", b"[0]", Position(2)),
                KeptState("a", b"[2]", Position(2)),
                KeptState("a", b"[3]", Position(3)),
                KeptState("a", b"[0]", Position(2)),
            ]
            await store.keep_states([], at)

    async def test_what_another_fold_has_left_gives_way(self) -> None:
        """However late it is: whoever keeps a state beside commits could not go on from that one."""
        async with self.store() as store:
            await store.append([commit(event())])
            at = await store.head()
            await store.append([commit(event(), states=[state(b"[1]", fold="snapshot")])])
            await store.keep_states([StoredState("shop.Product", "1", "a", b"[0]", position=Position(1))], at)
            assert await store.model_state("shop.Product", "1") == KeptState("a", b"[0]", Position(1))

    async def test_what_was_folded_from_another_history_is_not_kept(self) -> None:
        """Another event at the place up to which it was folded, none, or another store: nothing of it is kept."""
        async with self.store() as store:
            at = (await store.append([commit(event())]))[0]
            place = expect(Appended, at).place
            elsewhere = [
                Place(place.history_id, Position(1), bytes(16)),
                Place(place.history_id, Position(2), place.event_id),
                Place(bytes(16), Position(1), place.event_id),
            ]
            for wrong in elsewhere:
                folded = StoredState("shop.Product", "1", "a", b"[0]", position=Position(1))
                try:
                    await store.keep_states([folded], wrong)
                except HistoryDiverged:
                    assert await store.model_states(FIRST, 1) == []
                else:
                    raise AssertionError(f"a state up to {wrong} was kept")
