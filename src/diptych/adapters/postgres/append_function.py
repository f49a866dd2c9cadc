"""The append section as a function of PostgreSQL: one call for each batch, in a statement and transaction of its own.

The first thing it does is to lock the one row of `history`. At READ COMMITTED every statement after that sees all that
was committed by whoever held the lock before. How many statements it runs does not depend on the size of the batch: a
few that look things up for all commits at once, a loop without SQL that judges one commit after the other, and one
insert for each table. The loop is for batches in which something stands against a commit: mostly nothing does.

The caller has prepared all that can be told from the batch alone. Counted from 1, in the order of the batch:

- commits: `command_ids`, `keeps`, `refused`, `event_counts`, `payload_hashes`, `rejections`; `twins[c]` is the first
  commit of the same command id, or 0; `event_ends[c]`, `condition_ends[c]`, `hit_ends[c]`: where what is listed below
  of the commit ends;
- items, each distinct query item once: item i has `item_tags` from `item_tag_bounds[i] + 1` to `[i + 1]`, and types
  likewise. Item 0 matches nothing;
- conditions: `condition_items`, `condition_afters`;
- hits: `hit_items` match an event of the commit, the last of them its `hit_offsets`-th;
- clashes: commit `clash_commits[k]` has an event id that its earlier commit `clash_others[k]` has too;
- events, without those of refused commits: `event_commits`, `event_ids`, `event_types` (into `types`), `versions`,
  `datas`, `tag_lists`, `metadatas`;
- tags of events: `tag_events`, `tag_names` (into `tags`);
- `smooth`: in the batch itself nothing stands against any commit, should the history end at `base`, or where none of
  its conditions is behind that (or, where the caller knows no base, at `greatest_after`) later.

Event e of an appended commit c comes to be at position `head + shifts[c] + e`: a shift is 0 or, behind commits that
were not appended, less. The plans are made once: a plan for each call took longer than the call.

It answers with the head and time at which it judged and, unless all commits were appended, an answer for each commit
(its code, and `details`: of a conflict the position, with the item in `items`; of a repetition the commit repeated),
and with the kept outcomes that it met. Where the caller knows another history, one that is tagged otherwise, or
other unions of models, it has `diverged`: nothing was judged.

It runs as its owner, for callers who may write by hand what they send. So it refuses a batch whose numbers do not fit
together: every event that it writes comes to be behind the head that it found, without gaps, and nothing else does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "APPENDED",
    "APPEND_FUNCTION",
    "APPEND_FUNCTION_CHECKED",
    "APPEND_FUNCTION_IN_FEWER_STEPS",
    "APPEND_FUNCTION_MODELS_ALIKE",
    "APPEND_FUNCTION_TAGGED_ALIKE",
    "BROKEN",
    "CONFLICT",
    "CONTRADICTORY",
    "KEPT",
    "PARAMETERS",
    "REFUSED",
    "REPEATED",
    "TAKEN",
    "WRONG_ISOLATION",
]

APPENDED, CONFLICT, BROKEN, REFUSED, TAKEN, KEPT, REPEATED = range(7)
"""Codes of the answers. REFUSED: by the caller; TAKEN: an event id is stored already; REPEATED: within the batch."""
WRONG_ISOLATION = "DP015"
"""The SQLSTATE that it raises in a transaction that is not READ COMMITTED."""
CONTRADICTORY = "DP016"
"""The SQLSTATE that it raises for a batch whose numbers do not fit together: no `Batch` is one."""
RECORDED_AT_US_MAX = 253_402_300_799_999_999
"""The last microsecond of the year 9999, in microseconds since 1970: no later moment can be read back."""
RAREST_PROBE = 1_000
"""Positions counted of each of several tags to find the rarest, which the work then follows, here as in reads.

Migrations that were released hold it: for another value, reads get a number of their own.
"""

_IN = (
    "known_position bigint, known_event bytea, known_history bytea, base bigint, now_us bigint, closely boolean, "
    "lock_wait_ms integer, "
    "command_ids text[], twins integer[], keeps boolean[], refused boolean[], event_counts integer[], "
    "event_ends integer[], keeps_any boolean, "
    "payload_hashes bytea[], rejections bytea[], condition_ends integer[], hit_ends integer[], "
    "condition_items integer[], condition_afters bigint[], least_after bigint, greatest_after bigint, smooth boolean, "
    "item_tag_bounds integer[], item_tags text[], item_type_bounds integer[], item_types text[], "
    "hit_items integer[], hit_offsets integer[], clash_commits integer[], clash_others integer[], "
    "event_commits integer[], event_ids bytea[], event_types integer[], versions integer[], "
    "datas bytea[], tag_lists bytea[], metadatas bytea[], types text[], new_versions boolean, "
    "tag_events integer[], tag_names integer[], tags text[], "
    "channel text"
)
PARAMETERS: Mapping[str, str] = {name: kind for name, kind in (each.split() for each in _IN.split(", "))}  # noqa: C416
"""The type of each parameter by its name, in order."""

_OUT = (
    "OUT history_id bytea, OUT known_found bytea, OUT head bigint, OUT head_event bytea, OUT recorded_at bigint, "
    "OUT diverged boolean, OUT all_appended boolean, OUT codes integer[], OUT details bigint[], OUT items integer[], "
    "OUT kept_commits integer[], OUT kept_hashes bytea[], OUT kept_positions bigint[], OUT kept_counts integer[], "
    "OUT kept_rejections bytea[], OUT kept_events bytea[]"
)

_DECLARE = """
DECLARE
    held record;
    commit_count integer := cardinality(event_counts);
    kept_flags boolean[];
    taken_flags boolean[];
    broken bigint[];
    item_tag_ids bigint[];
    item_type_ids integer[];
    shifts integer[];
    nowhere constant integer := -2147483648;  -- the shift of a commit that was not appended
    last_of_items bigint[] := array_fill(0::bigint, ARRAY[cardinality(item_tag_bounds)]);
    kept_by integer[] := array_fill(0, ARRAY[commit_count]);
    type_ids integer[];
    tag_ids bigint[];
    type_total integer;
    tag_total bigint;
    reached bigint;
    last_event integer := 0;
    outcomes_due boolean := keeps_any;
    intact boolean;
    came_about bigint;
    code integer;
    detail bigint;
    item integer;
    events_seen integer := 0;
    condition_first integer := 1;
    hit_first integer := 1;
{DECLARE_WRITTEN}{DECLARE_IGNORED}"""

_BEGIN = """
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'the append section needs READ COMMITTED, this transaction is %',
            upper(current_setting('transaction_isolation')) USING ERRCODE = '{wrong_isolation}';
    END IF;
{CHECK_BATCH}    IF current_setting('synchronous_commit') = 'off' THEN
        {DO_COMMIT_DURABLY};
    END IF;
    {DO_LIMIT_WAIT};
    SELECT * INTO STRICT held FROM {schema}.history AS h WHERE h.one = 1 FOR NO KEY UPDATE;

    history_id := held.history_id;
    head := held.position;
    head_event := held.event_id;
    recorded_at := greatest(
        held.recorded_at, coalesce(now_us, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint));
    type_total := held.type_count;
    tag_total := held.tag_count;
    all_appended := true;
    diverged := false;

    -- is this still the history that the caller knows?
    IF known_position = head THEN
        known_found := head_event;
    ELSE
        SELECT e.event_id INTO known_found FROM {schema}.events AS e WHERE e.position = known_position;
    END IF;
    IF {HISTORY} <> known_history OR (known_position > 0 AND known_found IS DISTINCT FROM known_event) THEN
        diverged := true;
{SAY_WHICH}        RETURN;
    END IF;
"""

_LOOK_UP = """
    IF {IDS_MAY_BE_KEPT} THEN
        SELECT array_agg(u.ord::integer), array_agg(k.payload_hash), array_agg(k.position), array_agg(k.event_count),
            array_agg(k.rejection), array_agg(e.event_id)
        INTO kept_commits, kept_hashes, kept_positions, kept_counts, kept_rejections, kept_events
        FROM unnest(command_ids) WITH ORDINALITY AS u (command_id, ord)
        CROSS JOIN LATERAL (
            SELECT o.* FROM {schema}.outcomes AS o WHERE o.command_id = u.command_id LIMIT 1
        ) AS k
        LEFT JOIN LATERAL (
            SELECT x.event_id FROM {schema}.events AS x WHERE x.position = k.position LIMIT 1
        ) AS e ON true;
        IF kept_commits IS NOT NULL THEN
            kept_flags := array_fill(false, ARRAY[commit_count]);
            FOREACH item IN ARRAY kept_commits LOOP
                kept_flags[item] := true;
            END LOOP;
        END IF;
    END IF;

    IF closely THEN
        SELECT array_agg(EXISTS (
            SELECT 1 FROM unnest(event_commits, event_ids) AS u (commit, event_id)
            JOIN {schema}.events AS e ON e.event_id = u.event_id WHERE u.commit = c.ord
        ) ORDER BY c.ord)
        INTO taken_flags FROM generate_series(1, commit_count) AS c (ord);
    END IF;

    IF least_after < head THEN
        SELECT array_agg(coalesce(k.id, 0) ORDER BY u.ord) INTO item_tag_ids
        FROM unnest(item_tags) WITH ORDINALITY AS u (tag, ord)
        LEFT JOIN LATERAL (SELECT t.id FROM {schema}.tags AS t WHERE t.tag = u.tag LIMIT 1) AS k ON true;
        SELECT array_agg(coalesce(k.id, 0) ORDER BY u.ord) INTO item_type_ids
        FROM unnest(item_types) WITH ORDINALITY AS u (name, ord)
        LEFT JOIN LATERAL (SELECT t.id FROM {schema}.event_types AS t WHERE t.name = u.name LIMIT 1) AS k ON true;
        SELECT array_agg(coalesce(b.position, 0) ORDER BY c.ord) INTO broken
        FROM unnest(condition_items, condition_afters) WITH ORDINALITY AS c (item, after, ord)
        CROSS JOIN LATERAL (
            SELECT
                coalesce(item_tag_ids[item_tag_bounds[c.item] + 1 : item_tag_bounds[c.item + 1]], '{}') AS tags,
                coalesce(item_type_ids[item_type_bounds[c.item] + 1 : item_type_bounds[c.item + 1]], '{}') AS types
        ) AS i
        CROSS JOIN LATERAL (
            SELECT CASE
                WHEN c.item = 0 OR c.after >= head OR 0 = ANY (i.tags) THEN 0
                WHEN i.tags = '{}' AND i.types = '{}' THEN head
                WHEN i.tags = '{}' THEN (
                    SELECT min(f.position) FROM unnest(i.types) AS n (type) CROSS JOIN LATERAL (
                        SELECT e.position FROM {schema}.events AS e
                        WHERE e.type = n.type AND e.position > c.after ORDER BY e.position LIMIT 1
                    ) AS f
                )
                WHEN cardinality(i.tags) = 1 THEN (
                    SELECT t.position FROM {schema}.event_tags AS t
                    WHERE t.tag = i.tags[1] AND t.position > c.after AND (i.types = '{}' OR t.type = ANY (i.types))
                    ORDER BY t.position LIMIT 1
                )
                ELSE (
                    SELECT t.position FROM {schema}.event_tags AS t
                    WHERE t.tag = (
                        SELECT n.tag FROM unnest(i.tags) AS n (tag) ORDER BY (
                            SELECT count(*) FROM (
                                SELECT 1 FROM {schema}.event_tags AS p
                                WHERE p.tag = n.tag AND p.position > c.after LIMIT {rarest_probe}
                            ) AS probe
                        ) LIMIT 1
                    )
                    AND t.position > c.after AND (i.types = '{}' OR t.type = ANY (i.types))
                    AND NOT EXISTS (
                        SELECT 1 FROM unnest(i.tags) AS n (tag) WHERE NOT EXISTS (
                            SELECT 1 FROM {schema}.event_tags AS o WHERE o.tag = n.tag AND o.position = t.position
                        )
                    )
                    ORDER BY t.position LIMIT 1
                )
            END AS position
        ) AS b;
    END IF;
"""

_JUDGE = """
    IF smooth AND ({BASE_WILL_DO})
        AND kept_flags IS NULL AND taken_flags IS NULL AND (broken IS NULL OR 0 = ALL (broken))
    THEN
        shifts := array_fill(0, ARRAY[commit_count]);
        last_event := event_ends[commit_count];
        reached := head + last_event;
    ELSE
{LOOP}    END IF;
"""

_LOOP = """
    reached := head;
    outcomes_due := false;
    shifts := array_fill(nowhere, ARRAY[commit_count]);
    came_about := least(base, head);  -- the head, where the caller knows no base
    intact := base IS NOT DISTINCT FROM head;
    FOR i IN 1 .. commit_count LOOP
{CHECK_COMMIT}        code := {APPENDED};
        IF kept_flags[i] THEN
            code := {KEPT};
        ELSIF twins[i] > 0 AND kept_by[twins[i]] > 0 THEN
            code := {REPEATED};
            detail := kept_by[twins[i]];
        ELSIF refused[i] THEN
            code := {REFUSED};
        ELSE
            FOR c IN condition_first .. condition_ends[i] LOOP
                IF condition_afters[c] > came_about THEN
                    code := {BROKEN};
                    EXIT;
                END IF;
            END LOOP;
            IF code = {APPENDED} THEN
                FOR c IN condition_first .. condition_ends[i] LOOP
                    item := condition_items[c];
                    IF broken[c] > 0 THEN
                        code := {CONFLICT};
                        detail := broken[c];
                        EXIT;
                    ELSIF last_of_items[item] > condition_afters[c] THEN
                        code := {CONFLICT};
                        detail := last_of_items[item];
                        EXIT;
                    END IF;
                END LOOP;
            END IF;
            IF code = {APPENDED} AND taken_flags[i] THEN
                code := {TAKEN};
            END IF;
            IF code = {APPENDED} AND cardinality(clash_commits) > 0 THEN
                FOR k IN 1 .. cardinality(clash_commits) LOOP
                    IF clash_commits[k] = i AND shifts[clash_others[k]] > nowhere THEN
                        code := {TAKEN};
                    END IF;
                END LOOP;
            END IF;
        END IF;

        IF code = {APPENDED} THEN
            shifts[i] := reached - head - events_seen;
            FOR k IN hit_first .. hit_ends[i] LOOP
                last_of_items[hit_items[k]] := reached + hit_offsets[k];
            END LOOP;
            IF event_counts[i] > 0 THEN
                reached := reached + event_counts[i];
                last_event := event_ends[i];
            END IF;
            IF keeps[i] AND twins[i] > 0 THEN
                kept_by[twins[i]] := i;
                outcomes_due := true;
            END IF;
        ELSE
            IF all_appended THEN
                all_appended := false;
                codes := array_fill({APPENDED}, ARRAY[commit_count]);
                details := array_fill(0::bigint, ARRAY[commit_count]);
                items := array_fill(0, ARRAY[commit_count]);
            END IF;
            codes[i] := code;
            details[i] := detail;
            items[i] := item;
        END IF;

        IF intact AND code = {APPENDED} THEN
            came_about := came_about + event_counts[i];
        ELSIF event_counts[i] > 0 THEN
            intact := false;
        END IF;
        events_seen := event_ends[i];
        condition_first := condition_ends[i] + 1;
        hit_first := hit_ends[i] + 1;
    END LOOP;
"""

_WRITE = """
    IF reached > head THEN
{NAME_TYPES}
        INSERT INTO {schema}.events (position, recorded_at, type, version, event_id, data, tags, metadata)
        SELECT
            head + shifts[u.commit] + u.ord, recorded_at, type_ids[u.type], u.version, u.event_id, u.data, u.tags,
            u.metadata
        FROM unnest(event_commits, event_types, versions, event_ids, datas, tag_lists, metadatas)
            WITH ORDINALITY AS u (commit, type, version, event_id, data, tags, metadata, ord)
        WHERE shifts[u.commit] > nowhere;
{CHECK_WRITTEN}
        IF cardinality(tags) > 0 THEN
{NAME_TAGS}
            INSERT INTO {schema}.event_tags (tag, position, type)
            SELECT tag_ids[u.tag], head + shifts[event_commits[u.event]] + u.event, type_ids[event_types[u.event]]
            FROM unnest(tag_events, tag_names) AS u (event, tag)
            WHERE shifts[event_commits[u.event]] > nowhere;
        END IF;

        IF new_versions THEN
            INSERT INTO {schema}.event_versions AS v (type, version, held)
            SELECT DISTINCT type_ids[u.type], u.version, true
            FROM unnest(event_commits, event_types, versions) AS u (commit, type, version)
            WHERE shifts[u.commit] > nowhere
            ON CONFLICT ON CONSTRAINT event_versions_pkey DO UPDATE SET held = true WHERE NOT v.held;
        END IF;
    END IF;

    IF outcomes_due THEN
        INSERT INTO {schema}.outcomes (command_id, payload_hash, position, event_count, rejection)
        SELECT u.command_id, u.payload_hash, head + shifts[u.ord] + u.event_end, u.event_count, u.rejection
        FROM unnest(command_ids, keeps, payload_hashes, event_counts, event_ends, rejections)
            WITH ORDINALITY AS u (command_id, keep, payload_hash, event_count, event_end, rejection, ord)
        WHERE shifts[u.ord] > nowhere AND u.keep AND u.command_id IS NOT NULL;
    END IF;

    IF reached > head THEN
        UPDATE {schema}.history AS h
        SET position = reached, event_id = event_ids[last_event], recorded_at = append.recorded_at,
            tag_count = tag_total, type_count = type_total
        WHERE h.one = 1;
        {DO_NOTIFY};
    END IF;
"""


def _indented(sql: str) -> str:
    return "".join(f"    {line}" if line.strip() else line for line in sql.splitlines(keepends=True))


def _named(names: str, ids: str, total: str, table: str, name: str) -> str:
    """Finds the ids of names, and gives those that are new the next ones."""
    return f"""\
        WITH named AS (
            SELECT u.{name}, u.ord, k.id FROM unnest({names}) WITH ORDINALITY AS u ({name}, ord)
            LEFT JOIN LATERAL (SELECT t.id FROM {{schema}}.{table} AS t WHERE t.{name} = u.{name} LIMIT 1) AS k ON true
        ), made AS (
            INSERT INTO {{schema}}.{table} AS t (id, {name})
            SELECT {total} + row_number() OVER (ORDER BY n.ord), n.{name} FROM named AS n WHERE n.id IS NULL
            RETURNING t.id, t.{name}
        )
        SELECT array_agg(coalesce(n.id, m.id) ORDER BY n.ord), {total} + count(m.id)
        INTO {ids}, {total} FROM named AS n LEFT JOIN made AS m ON m.{name} = n.{name};
"""


def _mostly_known(names: str, ids: str, total: str, table: str, name: str) -> str:
    """The same, for names that are there already with one look."""
    return f"""\
        SELECT array_agg(k.id ORDER BY u.ord) INTO {ids}
        FROM unnest({names}) WITH ORDINALITY AS u ({name}, ord)
        CROSS JOIN LATERAL (SELECT t.id FROM {{schema}}.{table} AS t WHERE t.{name} = u.{name} LIMIT 1) AS k;
        IF cardinality({ids}) IS DISTINCT FROM cardinality({names}) THEN
{_indented(_named(names, ids, total, table, name))}        END IF;
"""


_TYPES = ("types", "type_ids", "type_total", "event_types", "name")
_TAGS = ("tags", "tag_ids", "tag_total", "tags", "tag")

_AS_IT_CAME: Mapping[str, str] = {
    "NAME_TYPES": _named(*_TYPES),
    "NAME_TAGS": _indented(_named(*_TAGS)),
    "DO_NOTIFY": "PERFORM pg_notify(channel, '')",
    "DO_COMMIT_DURABLY": "PERFORM set_config('synchronous_commit', 'on', true)",
    "DO_LIMIT_WAIT": "PERFORM set_config('lock_timeout', lock_wait_ms::text, true)",
    "IDS_MAY_BE_KEPT": "cardinality(command_ids) > 0",
    "BASE_WILL_DO": "base = head OR (base IS NULL AND greatest_after <= head)",
    "DECLARE_IGNORED": "",
    "HISTORY": "history_id",
    "SAY_WHICH": "",
}
"""How it does what it does, by the place in the function."""


_IN_FEWER_STEPS: Mapping[str, str] = {
    "NAME_TYPES": _mostly_known(*_TYPES),
    "NAME_TAGS": _indented(_mostly_known(*_TAGS)),
    "DO_NOTIFY": "ignored := pg_notify(channel, '')::text",
    "DO_COMMIT_DURABLY": "ignored := set_config('synchronous_commit', 'on', true)",
    "DO_LIMIT_WAIT": "ignored := set_config('lock_timeout', lock_wait_ms::text, true)",
    "IDS_MAY_BE_KEPT": """cardinality(command_ids) > 0 AND EXISTS (
        SELECT FROM {schema}.outcomes AS o WHERE o.command_id = ANY (command_ids)
    )""",
    "BASE_WILL_DO": "base = head OR greatest_after <= least(base, head)",
    "DECLARE_IGNORED": "    ignored text;\n",
    "HISTORY": "history_id",
    "SAY_WHICH": "",
}
"""The same in fewer and cheaper statements: an assignment is no query, and names and ids are mostly what one look finds
them to be: known, and new. That others have written is no reason to look at each commit, where nothing of it matches
(`broken` tells) and no commit stands on a pending event."""


_REGISTER = """
CREATE FUNCTION {schema}.register_types(names text[], versions integer[], all_tag_names bytea[], lock_wait_ms integer)
RETURNS void
LANGUAGE plpgsql VOLATILE
SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan
AS $register$
DECLARE
    total integer;
BEGIN
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    PERFORM set_config('lock_timeout', lock_wait_ms::text, true);
    SELECT h.type_count INTO STRICT total FROM {schema}.history AS h WHERE h.one = 1 FOR NO KEY UPDATE;
    INSERT INTO {schema}.event_types (id, name)
    SELECT total + row_number() OVER (), u.name FROM (SELECT DISTINCT n.name FROM unnest(names) AS n (name)) AS u
    WHERE NOT EXISTS (SELECT 1 FROM {schema}.event_types AS t WHERE t.name = u.name);
    UPDATE {schema}.history AS h SET type_count = (SELECT coalesce(max(t.id), 0) FROM {schema}.event_types AS t)
    WHERE h.one = 1;
    INSERT INTO {schema}.event_versions AS v (type, version, tag_names, held)
    SELECT t.id, u.version, u.tag_names, false
    FROM unnest(names, versions, all_tag_names) AS u (name, version, tag_names)
    JOIN {schema}.event_types AS t ON t.name = u.name
    ON CONFLICT ON CONSTRAINT event_versions_pkey DO UPDATE SET tag_names = excluded.tag_names
    WHERE NOT v.held OR v.tag_names IS NULL;
END
$register$;
"""

_CODES = {
    "APPENDED": APPENDED,
    "CONFLICT": CONFLICT,
    "BROKEN": BROKEN,
    "REFUSED": REFUSED,
    "TAKEN": TAKEN,
    "KEPT": KEPT,
    "REPEATED": REPEATED,
    "wrong_isolation": WRONG_ISOLATION,
    "rarest_probe": RAREST_PROBE,
}


def _with_codes(sql: str) -> str:
    for name, code in _CODES.items():
        sql = sql.replace(f"{{{name}}}", str(code))
    return sql


_LOWER_BOUNDS = ", ".join(f"array_lower({name}, 1)" for name, kind in PARAMETERS.items() if kind.endswith("[]"))
_CHECKS = {
    "DECLARE_WRITTEN": """    written bigint;
""",
    "CHECK_BATCH": f"""
    -- Elements are counted from 1; where a commit's events end is within the events that there are.
    IF 1 <> ANY (ARRAY[{_LOWER_BOUNDS}])
        OR event_ends[commit_count] IS DISTINCT FROM cardinality(event_commits)
        OR (0 <= ALL (event_ends) AND cardinality(event_commits) >= ALL (event_ends)) IS NOT TRUE
    THEN
        RAISE EXCEPTION 'the numbers of this batch do not fit together' USING ERRCODE = '{CONTRADICTORY}';
    END IF;
    IF now_us > {RECORDED_AT_US_MAX} THEN
        RAISE EXCEPTION 'no moment after the year 9999 can be read back' USING ERRCODE = '{CONTRADICTORY}';
    END IF;
""",
    "CHECK_COMMIT": f"""\
        IF (
            event_ends[i] >= events_seen
            AND event_ends[i] - events_seen = CASE WHEN refused[i] THEN 0 ELSE event_counts[i] END
            AND i = ALL (event_commits[events_seen + 1 : event_ends[i]])
        ) IS NOT TRUE THEN
            RAISE EXCEPTION 'the events of commit % are not its own', i USING ERRCODE = '{CONTRADICTORY}';
        END IF;
""",
    "CHECK_WRITTEN": f"""
        GET DIAGNOSTICS written = ROW_COUNT;
        IF written <> reached - head THEN
            RAISE EXCEPTION 'some events of this batch are of no commit' USING ERRCODE = '{CONTRADICTORY}';
        END IF;
""",
}
"""What is checked, each time, for all rows at once; by the place in the function."""


def _append_function(create: str, rights: str, checks: Mapping[str, str], steps: Mapping[str, str]) -> str:
    begin = _with_codes(_BEGIN + _LOOK_UP + _JUDGE.replace("{LOOP}", _LOOP) + _WRITE)
    sql = f"""
{create} {{schema}}.append({_IN}, {_OUT})
LANGUAGE plpgsql VOLATILE{rights}
SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan
AS $append$
{_DECLARE}
BEGIN
{begin}
END
$append$;
"""
    for place in _CHECKS:
        sql = sql.replace(f"{{{place}}}", checks.get(place, ""))
    for place, step in steps.items():
        sql = sql.replace(f"{{{place}}}", step)
    return sql


APPEND_FUNCTION = f"{_append_function('CREATE FUNCTION', '', {}, _AS_IT_CAME)}{_REGISTER}\n"
"""As it came first, with the function that registers types."""
_AS_OWNER = ("CREATE OR REPLACE FUNCTION", " SECURITY DEFINER SET search_path = pg_catalog, pg_temp", _CHECKS)
APPEND_FUNCTION_CHECKED = _append_function(*_AS_OWNER, _AS_IT_CAME)
"""The section alone, as its owner, who may call it left as it is; it believes no batch."""
APPEND_FUNCTION_IN_FEWER_STEPS = _append_function(*_AS_OWNER, _IN_FEWER_STEPS)
"""The same; what it does nearly always costs it less."""
_TAGGED_ALIKE: Mapping[str, str] = {**_IN_FEWER_STEPS, "HISTORY": "(history_id || held.tagging)"}
APPEND_FUNCTION_TAGGED_ALIKE = _append_function(*_AS_OWNER, _TAGGED_ALIKE)
"""The same, for those alone who know how the events are tagged: `known_history` ends with the id of the tagging."""
_MODELS_ALIKE: Mapping[str, str] = {
    **_IN_FEWER_STEPS,
    "HISTORY": "(history_id || held.tagging || CASE WHEN length(known_history) % 16 = 0 THEN '' ELSE held.models END)",
    "SAY_WHICH": """\
        all_appended := (history_id || held.tagging)
            IS DISTINCT FROM substr(known_history, 1, length(history_id || held.tagging));
""",
}
APPEND_FUNCTION_MODELS_ALIKE = _append_function(*_AS_OWNER, _MODELS_ALIKE)
"""The same, and where `known_history` goes on with the mark of the model unions (8 bytes, behind multiples of 16), for
those alone who know which are kept. Where nothing but these is another, it has `diverged`, but not `all_appended`."""
