#!/bin/sh
# The replica's entrypoint: copies the primary where there are no data yet, and runs what it is given, the server.
#
# PGHOST, PGUSER and PGPASSWORD say where the primary is. They are kept among the data, for the replication to come.
set -eu

if [ ! -e "$PGDATA/PG_VERSION" ]; then
  # Copied beside and moved when it is whole: a copy that was interrupted is begun again, and never started.
  copy=$PGDATA.copy
  rm -rf "$copy"
  # Under this name it can be in the primary's synchronous_standby_names.
  pg_basebackup --pgdata="$copy" --dbname=application_name=replica --slot=replica --wal-method=stream \
    --checkpoint=fast --write-recovery-conf
  [ ! -d "$PGDATA" ] || rmdir "$PGDATA"
  mv "$copy" "$PGDATA"
fi

exec "$@"
