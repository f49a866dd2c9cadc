#!/bin/sh
# Runs what migrate.sh has written to the file GRANTS, and sees to it that each role has a user with this password.
#
# As the owner of the schemas: PGHOST, PGDATABASE, PGUSER, PGPASSWORD. Again for each release, and to change passwords.
set -eu
: "${COMMANDS_PASSWORD:?}" "${QUERIES_PASSWORD:?}" "${WORKER_PASSWORD:?}"

run() {
  psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 "$@"
}

run --file="$GRANTS"

# Passwords come by the environment: the arguments of a process can be seen by everybody on the machine.
run <<'SQL'
\getenv commands COMMANDS_PASSWORD
\getenv queries QUERIES_PASSWORD
\getenv worker WORKER_PASSWORD

SELECT format('CREATE ROLE %I LOGIN', name)
FROM (VALUES ('shop_commands'), ('shop_queries'), ('shop_worker')) AS users (name)
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec

GRANT shop_writer TO shop_commands;
GRANT shop_reader TO shop_queries;
GRANT shop_projector, shop_writer TO shop_worker; -- it executes commands as well, those of processes and those in time

ALTER ROLE shop_commands PASSWORD :'commands';
ALTER ROLE shop_queries PASSWORD :'queries';
ALTER ROLE shop_worker PASSWORD :'worker';
SQL
