"""Rights in PostgreSQL: what each of three roles may do with a store, and the script that grants exactly that.

The roles are named after the schema of the events, cannot log in, and are given to users who can: a user's rights are
those of the roles it is in. Nobody but the owner changes or removes an event: all that is added to the history is
added by functions that run as their owner, and who may call them is what is granted.

The tables of generations are made by the processes that project, and belong to the projector's role, whichever of its
members made them, so that any other may drop them; what its role makes, the reader's may read (`table_maker`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias
from urllib.parse import parse_qsl, urlsplit

import msgspec

from diptych.adapters.postgres.connection import check_name
from diptych.errors import ConfigurationError

if TYPE_CHECKING:
    from diptych.adapters.postgres.connection import PostgresUrl

__all__ = ["Grants", "Role", "check_apart", "role_name", "table_maker"]

HAND_OVER_LOCK_WAIT_S = 5
"""Seconds that the script waits for a table or view that is to change hands: everybody who reads it waits behind."""

NAME_BEGINNING = 10
"""Characters of a read model's name that its tables' names begin with, however much these are shortened."""

Role: TypeAlias = Literal["writer", "reader", "projector"]
"""What a process may do: add to the history, read both sides, or read the history and write read models."""


class Grants(msgspec.Struct, frozen=True):
    """What the roles may do with one kind of store.

    Attributes:
        store: what it is, "event store".
        tables: by table and role, the privileges as SQL; every table of the store is named.
        functions: by function, who may call it.
        makes_tables: whether the projector makes tables and views of its own, which the reader reads.
    """

    store: str
    tables: Mapping[str, Mapping[Role, str]]
    functions: Mapping[str, Sequence[Role]] = {}
    makes_tables: bool = False

    @property
    def roles(self) -> list[Role]:
        """Those that have any right here."""
        granted = {role for rights in self.tables.values() for role in rights}
        roles: tuple[Role, ...] = ("writer", "reader", "projector")
        return [role for role in roles if role in granted]

    def sql(self, url: PostgresUrl, prefix: str) -> str:
        """The script, for psql and an administrator; run again, it leaves the roles with these rights on tables alone.

        Args:
            url: of a store whose tables are there.
            prefix: what the names of the roles begin with.

        Raises:
            ConfigurationError: the prefix is no plain name.
        """
        check_name("the roles' prefix", prefix)
        schema = url.quoted_schema
        everybody = _names(prefix, self.roles)
        alone = _alone(schema, makes_tables=self.makes_tables)
        parts = ["BEGIN;", f"-- {self.store}: who may do what", alone, _made(prefix, self.roles)]
        parts.append(f"GRANT USAGE ON SCHEMA {schema} TO {everybody};")
        for table, rights in self.tables.items():
            parts.append(f"REVOKE ALL ON {schema}.{table} FROM {everybody};")
            parts += [f"GRANT {right} ON {schema}.{table} TO {_name(prefix, role)};" for role, right in rights.items()]
        for function, callers in self.functions.items():
            parts.append(f"REVOKE ALL ON FUNCTION {schema}.{function} FROM PUBLIC, {everybody};")
            parts.append(f"GRANT EXECUTE ON FUNCTION {schema}.{function} TO {_names(prefix, callers)};")
        parts += [_tables_made(url, prefix)] if self.makes_tables else []
        return "\n".join([*parts, "COMMIT;", ""])


def check_apart(events: PostgresUrl, rows: PostgresUrl) -> None:
    """Make sure that two stores are not in one schema, as far as their URLs tell; the script looks at what is there.

    Whoever may make tables in a schema may make functions and types there too, which others could take for the store's.

    Raises:
        ConfigurationError: they are.
    """
    if _place(events) == _place(rows):
        raise ConfigurationError(
            f"events and read models are both in the schema {events.schema} of {events.shown}: {_OWN_SCHEMA}"
        )


def role_name(prefix: str, role: Role) -> str:
    """The name of a role, plain."""
    return f"{prefix}_{role}"


def table_maker(schema: str) -> str:
    """Selects the role that makes tables in a schema (parameter 1, its plain name) for the user who asks, if any does.

    It is known by its rights: it may create in the schema and write the catalog, is neither the schema's owner nor a
    superuser, and the user is in it. Superusers are in every role: what they make goes to it as well.
    """
    return (
        "SELECT r.rolname FROM pg_catalog.pg_namespace AS n CROSS JOIN LATERAL pg_catalog.aclexplode(n.nspacl) AS a "
        "JOIN pg_catalog.pg_roles AS r ON r.oid = a.grantee WHERE n.nspname = $1 AND a.privilege_type = 'CREATE' "
        "AND a.grantee <> n.nspowner AND NOT r.rolsuper AND pg_catalog.pg_has_role(r.oid, 'USAGE') "
        f"AND pg_catalog.has_table_privilege(r.oid, '{schema}.diptych_generations', 'INSERT') "
        "ORDER BY r.rolname <> current_user, r.rolname LIMIT 1"
    )


_OWN_SCHEMA = (
    "the projector makes tables beside its read models, and must make nothing beside the events. "
    "Give read models a schema of their own, as they have where no --read-store is named"
)


def _place(url: PostgresUrl) -> tuple[object, ...]:
    """Server, database and schema, whoever connects."""
    parts = [urlsplit(dsn) for dsn in url.dsns]
    named = dict(parse_qsl(parts[0].query))
    hosts = [(part.hostname or named.get("host"), str(part.port or named.get("port", "5432"))) for part in parts]
    return (hosts, parts[0].path, url.schema)


def _alone(schema: str, *, makes_tables: bool) -> str:
    """Events, and the processes beside them, are not where read models are."""
    wrong = "<>" if makes_tables else "="
    return f"""\
DO $alone$
BEGIN
    IF EXISTS (SELECT FROM {schema}.migrations AS m WHERE m.store {wrong} 'read store') THEN
        RAISE EXCEPTION '{_OWN_SCHEMA}';
    END IF;
END
$alone$;"""


def _name(prefix: str, role: Role) -> str:
    return f'"{role_name(prefix, role)}"'


def _names(prefix: str, roles: Sequence[Role]) -> str:
    return ", ".join(_name(prefix, role) for role in roles)


def _made(prefix: str, roles: Sequence[Role]) -> str:
    """Roles belong to the server and may be there already; that they may connect is mostly said of everybody."""
    names = ", ".join(f"'{role_name(prefix, role)}'" for role in roles)
    return f"""\
DO $roles$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY[{names}] LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname = role) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role);
        END IF;
        IF NOT has_database_privilege(role, current_database(), 'CONNECT') THEN
            EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), role);
        END IF;
    END LOOP;
END
$roles$;"""


def _tables_made(url: PostgresUrl, prefix: str) -> str:
    """The right to make tables; and what was made before, handed over."""
    schema, maker, reader = url.quoted_schema, _name(prefix, "projector"), _name(prefix, "reader")
    return f"""\
GRANT CREATE ON SCHEMA {schema} TO {maker};
DO $tables$
DECLARE
    owner text;
    made record;
BEGIN
    PERFORM set_config('lock_timeout', '{HAND_OVER_LOCK_WAIT_S}s', true);
    -- the schema's owner, who may drop these tables anyway, may read and write them as well
    SELECT pg_get_userbyid(n.nspowner) INTO STRICT owner
    FROM pg_catalog.pg_namespace AS n WHERE n.nspname = '{url.schema}';
    IF NOT pg_has_role(owner, '{role_name(prefix, "projector")}', 'USAGE') THEN
        EXECUTE format('GRANT {maker} TO %I', owner);
    END IF;
    -- what was made before these roles were there changes hands
    FOR made IN
        SELECT c.oid::regclass AS name, pg_get_userbyid(c.relowner) <> '{role_name(prefix, "projector")}' AS of_another
        FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = '{url.schema}' AND (
            c.relkind = 'r' AND EXISTS (
                SELECT FROM {schema}.diptych_generations AS g
                WHERE g.form IS NOT NULL AND c.relname ~ ('__g' || g.number || '$')
                AND starts_with(c.relname, left(g.table_name, {NAME_BEGINNING}))
            )
            OR c.relkind = 'r' AND EXISTS (
                SELECT FROM {schema}.diptych_dropped_tables AS d WHERE d.table_name = c.relname
            )
            OR c.relkind = 'v' AND EXISTS (
                SELECT FROM {schema}.diptych_projections AS p WHERE p.view_name = c.relname
            )
        )
    LOOP
        IF made.of_another THEN
            EXECUTE format('ALTER TABLE %s OWNER TO {maker}', made.name);
        END IF;
        EXECUTE format('GRANT SELECT ON %s TO {reader}', made.name);
    END LOOP;
END
$tables$;
ALTER DEFAULT PRIVILEGES FOR ROLE {maker} IN SCHEMA {schema} GRANT SELECT ON TABLES TO {reader};"""
