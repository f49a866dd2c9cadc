"""Writing rows so that nothing shows before the write is published, and nothing is lost where it never is.

A row that changes gets a new document, which shows from the write's number on; the document that it replaces is only
told until which number it shows. That is done on condition that the document is as it was found (`if_seq_no`), so that
of two writers of one row the second notices, whichever of them is alive; and never over a higher number: who began
later has made void what began before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diptych.adapters.opensearch.catalog import FOREVER, Build, Catalog
from diptych.adapters.opensearch.cluster import Cluster, Hit
from diptych.adapters.opensearch.columns import RowCodec
from diptych.adapters.opensearch.row_queries import KEYS_MAX, TERMS_MAX, of_keys, showing
from diptych.read_side.read_store import Failed, Fenced, SliceWrite

__all__ = ["Begun", "remove_ended", "settle", "write_rows"]

REMOVED_MAX = 100_000
"""Documents of one generation that are removed at once."""
SETTLED_MAX = 1_000
"""Documents that one request is about when void numbers are taken out of rows."""

Operation = tuple[str, Mapping[str, Any], Mapping[str, Any]]


class Begun(NamedTuple):
    """A write that has its number."""

    number: int
    build: Build
    write: SliceWrite


async def write_rows(cluster: Cluster, catalog: Catalog, begun: Sequence[Begun]) -> dict[int, Fenced | Failed]:
    """Write the rows of each; of which, by number, nothing may be published, and why.

    Raises:
        StoreUnavailable: what was written of them is not known; none may be published.
    """
    operations: list[Operation] = []
    numbers: list[int] = []
    refused: dict[int, Fenced | Failed] = {}
    for each in begun:
        mine = await _operations(cluster, catalog, each)
        if mine is None:
            refused[each.number] = Fenced()
        else:
            operations += mine
            numbers += [each.number] * len(mine)
    for number, (status, reason) in zip(numbers, await cluster.bulk(operations), strict=True):
        if status in (404, 409):
            refused[number] = Fenced()
        elif status == 400:
            refused.setdefault(number, Failed(f"OpenSearch refuses a row: {reason}"))
        elif status >= 300:
            raise cluster.unavailable(f"a row was not written: {status} {reason}")
    if operations:
        await cluster.refresh({each.build.index for each in begun})
    return refused


async def _operations(cluster: Cluster, catalog: Catalog, begun: Begun) -> list[Operation] | None:
    """What makes the rows as they are to be; None where somebody else has begun to write them later."""
    number, build, write = begun
    assert build.table is not None
    codec = RowCodec(build.table)
    documents = {found["k"]: found for found in map(codec.document, write.upserts)}
    deleted = [codec.key_id(key) for key in write.deletes if codec.may_have_row(key)]
    replaced = await _showing(cluster, catalog, build, [*documents, *deleted])
    if any(number < hit.source["until"] < FOREVER for hit in replaced):
        return None
    return [
        *(
            (
                "update",
                {"_index": build.index, "_id": hit.id, "if_seq_no": hit.seq_no, "if_primary_term": hit.primary_term},
                {"doc": {"until": number}},
            )
            for hit in replaced
        ),
        *(
            (
                "create",
                {"_index": build.index, "_id": f"{key}-{number}"},
                {**document, "from": number, "until": FOREVER},
            )
            for key, document in documents.items()
        ),
    ]


async def _showing(cluster: Cluster, catalog: Catalog, build: Build, ids: Sequence[str]) -> list[Hit]:
    """The documents of these keys that show."""
    found: list[Hit] = []
    for at in range(0, len(ids), KEYS_MAX):
        query = showing(build, catalog.last, of_keys(ids[at : at + KEYS_MAX]))
        body = {"query": query, "_source": ["until"], "size": KEYS_MAX, "seq_no_primary_term": True}
        found += await cluster.search(build.index, body)
    return found


async def remove_ended(cluster: Cluster, index: str, query: Mapping[str, Any]) -> None:
    """Delete documents that no snapshot shows any more."""
    await cluster.request(
        "POST",
        f"/{index}/_delete_by_query",
        {"query": query, "max_docs": REMOVED_MAX},
        expect=(404,),
        conflicts="proceed",
    )


async def settle(cluster: Cluster, index: str, void: Sequence[int]) -> None:
    """Take void numbers out of the rows, so that they need not be remembered: what they ended goes on.

    Raises:
        StoreUnavailable: also where somebody writes the same rows meanwhile; ask again.
    """
    assert len(void) <= TERMS_MAX
    await cluster.refresh([index])
    begun = {"query": {"terms": {"from": list(void)}}}
    await cluster.request("POST", f"/{index}/_delete_by_query", begun, refresh=True)
    while True:
        body = {
            "query": {"terms": {"until": list(void)}},
            "_source": False,
            "size": SETTLED_MAX,
            "seq_no_primary_term": True,
        }
        hits = await cluster.search(index, body)
        operations: list[Operation] = [
            (
                "update",
                {"_index": index, "_id": hit.id, "if_seq_no": hit.seq_no, "if_primary_term": hit.primary_term},
                {"doc": {"until": FOREVER}},
            )
            for hit in hits
        ]
        for status, reason in await cluster.bulk(operations):
            if status >= 300:
                raise cluster.unavailable(f"a row could not be settled: {status} {reason}")
        await cluster.refresh([index])
        if len(hits) < SETTLED_MAX:
            return
