#!/bin/sh
# Makes or upgrades the tables, as their owner, and writes down who may do what, for grants.sh. Again for each release.
#
# DIPTYCH_STORE says where, GRANTS is the file.
set -eu

diptych migrate
diptych migrate --grants --role-prefix shop >"$GRANTS"
