"""Speaks HTTP with an OpenSearch cluster: few requests, each sent once.

Nothing is sent again here: whether a write that got no answer took place is for the caller to find out, and each has
its way of doing so.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import httpx2
import msgspec

from diptych.errors import ConfigurationError, StoreClosed, StoreUnavailable

__all__ = ["Address", "Cluster", "Hit", "read_address"]

REQUEST_S_MAX = 30.0
"""Seconds that a request to OpenSearch may take."""
CONNECTIONS_MAX = 20
"""Connections of one read store to OpenSearch."""
BULK_BYTES_MAX = 5_000_000
"""Bytes of one bulk request to OpenSearch, unless a single row is larger."""
_SHOWN_CHARACTERS_MAX = 300
"""Of an error that OpenSearch gives."""
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

_SCHEMES = {"opensearch": "https", "opensearch+http": "http"}
_PREFIX_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-")


class Address(NamedTuple):
    """Where a read store is.

    Attributes:
        base: the server, "https://search:9200".
        login: user and password; None: nobody in particular.
        prefix: what the names of its indexes begin with.
        ca: a file of certificates to trust instead of the system's; empty: the system's.
        shown: the URL without its password.
    """

    base: str
    login: tuple[str, str] | None
    prefix: str
    ca: str
    shown: str


def read_address(url: str) -> Address:
    """The parts of `opensearch://user:password@host:9200?prefix=diptych`; `opensearch+http://` is without TLS.

    Raises:
        ConfigurationError: it cannot be read; the password is not shown.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 9200
        given = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError as error:
        raise ConfigurationError("the URL of OpenSearch cannot be read: opensearch://host:9200?prefix=name") from error
    prefix, ca = given.pop("prefix", "diptych"), given.pop("ca", "")
    if not host or parts.path.strip("/") or given:
        raise ConfigurationError(
            "the URL of OpenSearch is opensearch://user:password@host:9200, with ?prefix= and ?ca= and nothing else"
        )
    if not prefix or not _PREFIX_LETTERS.issuperset(prefix) or prefix[0] in "_-":
        raise ConfigurationError(
            f"the prefix {prefix!r} cannot begin the name of an index: use small letters, digits, - and _"
        )
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    login = None if parts.username is None else (unquote(parts.username), unquote(parts.password or ""))
    user = f"{parts.username}@" if parts.username else ""
    return Address(
        f"{_SCHEMES[parts.scheme]}://{place}", login, prefix, ca, f"{parts.scheme}://{user}{place}?prefix={prefix}"
    )


class Hit(NamedTuple):
    """A document that a search found."""

    id: str
    seq_no: int
    primary_term: int
    source: Mapping[str, Any]
    sort: Sequence[Any]


class Cluster:
    """Connections to one cluster. `transport` takes their place in tests of what fails on the way."""

    def __init__(self, address: Address, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        self.address = address
        self._transport = transport
        self._client: httpx2.AsyncClient | None = None
        self._under_way = 0
        self._idle = asyncio.Event()

    @property
    def is_open(self) -> bool:
        """Whether requests can be sent."""
        return self._client is not None

    def open(self) -> None:
        """Make ready to connect.

        Raises:
            ConfigurationError: the file of certificates cannot be read.
        """
        try:
            trusted: ssl.SSLContext | bool = self.address.base.startswith("https:")  # a context takes long to make
            if self.address.ca:
                trusted = ssl.create_default_context(cafile=self.address.ca)
        except OSError as error:
            raise ConfigurationError(f"the certificates in {self.address.ca} cannot be read: {error}") from error
        self._client = httpx2.AsyncClient(
            base_url=self.address.base,
            auth=self.address.login,
            verify=trusted,
            timeout=REQUEST_S_MAX,
            limits=httpx2.Limits(max_connections=CONNECTIONS_MAX),
            transport=self._transport,
        )

    async def close(self) -> None:
        """Take no more requests, and let go of all connections when those are answered that are under way."""
        client, self._client = self._client, None
        if client is not None:
            if self._under_way:
                self._idle.clear()
                await self._idle.wait()
            await client.aclose()

    def check_open(self) -> None:
        """Make sure that it is open.

        Raises:
            StoreClosed: it is not.
        """
        if self._client is None:
            raise StoreClosed(f"the read store {self.address.shown} is not open")

    async def request(
        self, method: str, path: str, body: Any = None, *, expect: Iterable[int] = (), **parameters: Any
    ) -> tuple[int, Any]:
        """Status and decoded answer; `expect` are statuses beside success that the caller understands.

        Raises:
            StoreUnavailable: the cluster cannot be reached, or refuses.
        """
        reply = await self._answer(method, path, body, parameters)
        if not reply.is_success and reply.status_code not in expect:
            raise self.unavailable(f"{method} {path}: {reply.status_code} {_shown(reply.content)}")
        try:
            return reply.status_code, msgspec.json.decode(reply.content)
        except msgspec.DecodeError as error:
            raise self.unavailable(f"{method} {path}: no JSON: {_shown(reply.content)}") from error

    async def _answer(self, method: str, path: str, body: Any, parameters: Mapping[str, Any]) -> httpx2.Response:
        content = b"" if body is None else body if isinstance(body, bytes) else msgspec.json.encode(body)
        self.check_open()
        assert self._client is not None
        self._under_way += 1
        try:
            return await self._client.request(
                method,
                path,
                content=content,
                params={name: str(value).lower() for name, value in parameters.items()},
                headers={"content-type": "application/x-ndjson" if isinstance(body, bytes) else "application/json"},
            )
        except httpx2.HTTPError as error:
            raise self.unavailable(f"{type(error).__name__} {error}") from error
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    def unavailable(self, reason: str) -> StoreUnavailable:
        """The error for what keeps it from answering."""
        return StoreUnavailable(f"the read store {self.address.shown}: {reason}")

    # ── documents ────────────────────────────────────────────────────────────

    async def search(self, index: str, body: Mapping[str, Any], *, ranked: bool = False) -> list[Hit]:
        """What a search of one index finds; all of it, or nothing. `ranked`: by words of the whole index, not of parts.

        Raises:
            StoreUnavailable: also where a part of the index did not answer.
        """
        _, answer = await self.request(
            "POST",
            f"/{index}/_search",
            {"track_total_hits": False, **body},
            allow_partial_search_results=False,
            search_type="dfs_query_then_fetch" if ranked else "query_then_fetch",
        )
        self._check_shards(answer)
        return [
            Hit(
                found["_id"],
                found.get("_seq_no", -1),
                found.get("_primary_term", -1),
                found.get("_source", {}),
                found.get("sort", ()),
            )
            for found in answer["hits"]["hits"]
        ]

    async def count(self, index: str, query: Mapping[str, Any]) -> int:
        """How many documents of an index a query matches."""
        _, answer = await self.request("POST", f"/{index}/_count", {"query": query})
        self._check_shards(answer)
        return int(answer["count"])

    async def now(self, index: str) -> dt.datetime:
        """What time it is in the cluster, in whole milliseconds: by the clock of whichever node answers.

        A search tells what it takes `now` for. This one needs no rights beyond the index, which has a date field "now".
        """
        ranges = {"date_range": {"field": "now", "ranges": [{"from": "now"}]}}
        _, answer = await self.request("POST", f"/{index}/_search", {"size": 0, "aggs": {"now": ranges}})
        self._check_shards(answer)
        (bucket,) = answer["aggregations"]["now"]["buckets"]
        return _EPOCH + dt.timedelta(milliseconds=int(bucket["from"]))

    async def bulk(
        self, operations: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]]
    ) -> list[tuple[int, str]]:
        """Do each of (action, what it is about, document); status and reason of each. Searches do not see it yet."""
        results: list[tuple[int, str]] = []
        lines: list[bytes] = []
        size = 0
        for action, about, document in operations:
            line = msgspec.json.encode({action: about}) + b"\n" + msgspec.json.encode(document) + b"\n"
            if lines and size + len(line) > BULK_BYTES_MAX:
                results += await self._bulk(lines)
                lines, size = [], 0
            lines.append(line)
            size += len(line)
        return results + (await self._bulk(lines) if lines else [])

    async def _bulk(self, lines: Sequence[bytes]) -> list[tuple[int, str]]:
        _, answer = await self.request("POST", "/_bulk", b"".join(lines))
        done = [next(iter(item.values())) for item in answer["items"]]
        if len(done) != len(lines):
            raise self.unavailable("a bulk request was answered in part")
        return [(each["status"], str(each.get("error", {}).get("reason", ""))) for each in done]

    async def refresh(self, indexes: Iterable[str]) -> None:
        """Let searches see what was written to these indexes."""
        _, answer = await self.request("POST", f"/{','.join(sorted(indexes))}/_refresh")
        self._check_shards(answer)

    def _check_shards(self, answer: Mapping[str, Any]) -> None:
        if answer["_shards"]["failed"] or answer.get("timed_out"):
            raise self.unavailable("a part of an index did not answer")

    @staticmethod
    def document(index: str, name: str) -> str:
        """The path of a document."""
        return f"/{index}/_doc/{quote(name, safe='')}"


def _shown(content: bytes) -> str:
    text = content.decode("utf-8", "replace")
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else f"{text[:_SHOWN_CHARACTERS_MAX]}…"
