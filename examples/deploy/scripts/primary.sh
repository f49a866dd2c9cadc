#!/bin/sh
# Run once by the image, when the primary's data directory has just been made: who owns the shop, and who replicates.
set -eu
: "${OWNER_PASSWORD:?}" "${REPLICATION_PASSWORD:?}"

psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" <<'SQL'
\getenv owner_password OWNER_PASSWORD
\getenv replication_password REPLICATION_PASSWORD

-- Makes schemas, roles and their users. Only migrate.sh and grants.sh connect as it; a superuser nobody needs.
CREATE ROLE shop_owner LOGIN CREATEROLE PASSWORD :'owner_password';
SELECT format('ALTER DATABASE %I OWNER TO shop_owner', current_database()) \gexec

CREATE ROLE shop_replication LOGIN REPLICATION PASSWORD :'replication_password';
-- Keeps what the replica has not seen yet, while it is away.
SELECT FROM pg_create_physical_replication_slot('replica');
SQL

# `all` databases, which the image lets everybody into with a password, are not replication.
echo 'host replication shop_replication samenet scram-sha-256' >>"$PGDATA/pg_hba.conf"
