"""What runs on the server: each script is one moment, and all that it changes is changed at once.

A script has one key, the prefix of all names, and one argument: texts in one (`connection.frames`), which it takes one
after the other. It gives its answer in the same form.

Every change has a number, greater than all before and not less than the server's time in microseconds. While a snapshot
is open, a change first notes what it is about to change: in a list, the undo, whose entries say their number and the
one before it, so that an entry that is missing shows. What is older than the oldest snapshot is taken off again.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

__all__ = ["CATALOG", "CHANGE", "READ", "SWEEP", "UNDO_CHANGES_MAX", "WRITE", "Script"]

UNDO_CHANGES_MAX = 10_000
"""Changes that are kept for a snapshot that is open; one that needs more gets `StoreUnavailable`."""
SWEPT_ROWS_MAX = 1_000
"""Rows of what was dropped that are removed in one go."""


class Script(NamedTuple):
    """A script, and the name by which the server knows it."""

    text: str
    sha: str


def _script(*parts: str, flags: str = "") -> Script:
    text = "\n".join((f"#!lua flags={flags}" if flags else "#!lua", *parts))
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


_FRAMES = """
local p, input, at, output = KEYS[1], ARGV[1], 1, {}
local function take()
    local length = struct.unpack('>I4', input, at)
    at = at + 4
    if length == 4294967295 then return false end
    at = at + length
    return string.sub(input, at - length, at - 1)
end
local function number() return tonumber(take()) end
local function frame(to, text)
    if not text then
        to[#to + 1] = '\\255\\255\\255\\255'
    else
        to[#to + 1] = struct.pack('>I4', #text)
        to[#to + 1] = text
    end
end
local function framed(list)
    local to = {}
    for _, text in ipairs(list) do frame(to, text) end
    return table.concat(to)
end
local function give(text) frame(output, text) end
local function give_all(list)
    give(tostring(#list))
    for _, text in ipairs(list) do give(text) end
end
local function unframed(text)
    local list, place = {}, 1
    while place <= #text do
        local length = struct.unpack('>I4', text, place)
        place = place + 4
        if length == 4294967295 then
            list[#list + 1] = false
        else
            list[#list + 1] = string.sub(text, place, place + length - 1)
            place = place + length
        end
    end
    return list
end
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local last = redis.call('GET', p .. ':change') or '0'
"""

_CHANGES = f"""
local function oldest_snapshot()
    while true do
        local head = redis.call('ZRANGE', p .. ':snapshots', 0, 0, 'WITHSCORES')
        if not head[1] then return nil end
        if tonumber(string.match(head[1], '^%d+')) > now then return tonumber(head[2]) end
        redis.call('ZREM', p .. ':snapshots', head[1])
    end
end
local oldest, undo, changed = oldest_snapshot(), {{}}, false
local function set(build, hash, field, value)
    local name = p .. ':' .. hash .. ':' .. build
    changed = true
    if oldest then
        for _, text in ipairs({{build, hash, field, redis.call('HGET', name, field)}}) do undo[#undo + 1] = text end
    end
    if value then redis.call('HSET', name, field, value) else redis.call('HDEL', name, field) end
end
local function put(build, key, fields)
    local name = p .. ':row:' .. build .. ':' .. key
    local entries, new = redis.call('HGET', name, ''), fields and fields[2] or false
    changed = true
    if oldest then
        local was = redis.call('HGETALL', name)
        for _, text in ipairs({{build, 'row', key, was[1] and framed(was) or false}}) do undo[#undo + 1] = text end
    end
    if entries and entries ~= new then
        local list = unframed(entries)
        for n = 1, #list, 2 do redis.call('ZREM', p .. ':index:' .. build .. ':' .. list[n], list[n + 1]) end
    end
    redis.call('DEL', name)
    if not fields then
        redis.call('ZREM', p .. ':index:' .. build .. ':', key)
        return
    end
    redis.call('HSET', name, unpack(fields))
    redis.call('ZADD', p .. ':index:' .. build .. ':', 0, key)
    if new and entries ~= new then
        local list = unframed(new)
        for n = 1, #list, 2 do redis.call('ZADD', p .. ':index:' .. build .. ':' .. list[n], 0, list[n + 1]) end
    end
end
local function head()
    local entry = redis.call('LINDEX', p .. ':undo', 0)
    return entry and tonumber(unframed(string.sub(entry, 1, 4 + struct.unpack('>I4', entry, 1)))[1])
end
local function finish(origin, tell)
    local change = last
    if changed then
        change = string.format('%.0f', math.max(now, tonumber(last) + 1))
        redis.call('SET', p .. ':change', change)
        if oldest then
            redis.call('RPUSH', p .. ':undo', framed({{change, last, framed(undo)}}))
            redis.call('LTRIM', p .. ':undo', -{UNDO_CHANGES_MAX}, -1)
            while (head() or now) <= oldest do redis.call('LPOP', p .. ':undo') end
        else
            redis.call('UNLINK', p .. ':undo')
        end
    end
    if tell then redis.call('PUBLISH', p .. ':changes', origin .. ' ' .. change) end
    return table.concat(output)
end
"""

WRITE = _script(
    _FRAMES,
    _CHANGES,
    """
local origin = take()
for _ = 1, number() do
    local name, build, slice = take(), take(), take()
    local state, blocked, epoch_by = p .. ':build:' .. build, p .. ':blocked:' .. build, nil
    local seen = redis.call('HMGET', state, 'fingerprint', slice .. '.at', slice .. '.epoch')
    local good = true
    for n = 1, 3 do good = (seen[n] == take()) and good end
    local at_next, epoch_next, rest = take(), take(), take()
    local function apply(act) if good then act() end end
    apply(function()
        set(build, 'build', slice .. '.at', at_next)
        if epoch_next ~= seen[3] then set(build, 'build', slice .. '.epoch', epoch_next) end
        if rest ~= redis.call('HGET', state, slice .. '.rest') then set(build, 'build', slice .. '.rest', rest) end
    end)
    for _ = 1, number() do
        local key = take()
        apply(function() put(build, key, false) end)
    end
    for _ = 1, number() do
        local key, fields = take(), unframed(take())
        apply(function() put(build, key, fields) end)
    end
    for _ = 1, number() do
        local key = take()
        apply(function()
            set(build, 'blocked', key, false)
            redis.call('HDEL', p .. ':traces:' .. build, key)
        end)
    end
    for _ = 1, number() do
        local key, found, trace = take(), take(), take()
        apply(function()
            set(build, 'blocked', key, found)
            redis.call('HSET', p .. ':traces:' .. build, key, trace)
        end)
    end
    for _ = 1, number() do
        local where, what = take(), take()
        apply(function() redis.call('HSETNX', p .. ':discards:' .. name, where, what) end)
    end
    for _ = 1, number() do
        local key, what = take(), take()
        apply(function() redis.call('RPUSH', p .. ':retries:' .. name .. ':' .. key, what) end)
    end
    give(good and (redis.call('HGET', p .. ':live:' .. name, 'number') or '0'))
end
return finish(origin, changed)
""",
)
"""Writes of slices, each all or nothing: gives the live generation's number for each, or nothing where it is fenced."""

CHANGE = _script(
    _FRAMES,
    _CHANGES,
    """
local origin, tell = take(), take() == '1'
if take() ~= (redis.call('GET', p .. ':catalog') or '0') then give(false); return table.concat(output) end
local held = true
for _ = 1, number() do
    local hash, field, expected = take(), take(), take()
    held = held and redis.call('HGET', p .. hash, field) == expected
end
if not held then give(false); return table.concat(output) end
redis.call('INCR', p .. ':catalog')
for _ = 1, number() do
    local kind, build = take(), take()
    if kind == 'set' then
        set(build, take(), take(), take())
    elseif kind == 'epoch' then
        local field = take()
        local epoch = redis.call('HGET', p .. ':build:' .. build, field)
        if epoch then set(build, 'build', field, tostring(tonumber(epoch) + 1)) end
    elseif kind == 'plain' then
        local field, value = take(), take()
        if value then redis.call('HSET', p .. ':' .. build, field, value)
        else redis.call('HDEL', p .. ':' .. build, field) end
    elseif kind == 'drop' then
        for _, hash in ipairs({'build', 'blocked'}) do
            for _, field in ipairs(redis.call('HKEYS', p .. ':' .. hash .. ':' .. build)) do
                set(build, hash, field, false)
            end
        end
        redis.call('UNLINK', p .. ':traces:' .. build)
        redis.call('HDEL', p .. ':builds', build)
        redis.call('ZADD', p .. ':dropped', string.format('%.0f', math.max(now, tonumber(last) + 1)), build)
    end
end
give('1')
return finish(origin, tell)
""",
)
"""A change of the catalog, if it is as it was read; gives nothing where it is not."""

CATALOG = _script(
    _FRAMES,
    """
local name = take()
give(string.format('%.0f', now))
give(redis.call('GET', p .. ':catalog') or '0')
give(redis.call('HGET', p .. ':store', 'run'))
for _, hash in ipairs({'numbers', 'holders', 'workers'}) do give_all(redis.call('HGETALL', p .. ':' .. hash)) end
local builds = redis.call('HGETALL', p .. ':builds')
for n = 1, #builds, 2 do
    if not name or name == builds[n + 1] then
        give(builds[n + 1])
        local shown = redis.call('HMGET', p .. ':live:' .. builds[n + 1], 'number', 'kept')
        give(shown[1])
        give(shown[2])
        give_all(redis.call('HGETALL', p .. ':build:' .. builds[n]))
    end
end
return table.concat(output)
""",
    flags="no-writes",
)
"""The catalog: of one projection, or whole."""

READ = _script(
    _FRAMES,
    """
local function row(build, key)
    give(key)
    give_all(redis.call('HGETALL', p .. ':row:' .. build .. ':' .. key))
end
local id, age_us = take(), number()
for _ = 1, number() do redis.call('ZREM', p .. ':snapshots', take()) end
local since, name, wanted = take(), take(), take()
local changes = {}
if id then
    id = string.format('%.0f', now + age_us) .. ':' .. id
    redis.call('ZADD', p .. ':snapshots', last, id)
elseif since and since ~= last then
    local place, before = -1, last
    while before ~= since do
        local entry = redis.call('LINDEX', p .. ':undo', place)
        local parts = entry and unframed(entry)
        if not entry or parts[1] ~= before or tonumber(before) < tonumber(since) then
            give(false)
            return table.concat(output)
        end
        table.insert(changes, 1, unframed(parts[3]))
        before, place = parts[2], place - 1
    end
end
give(last)
give(id)
local found = redis.call('HMGET', p .. ':live:' .. name, 'number', 'kept')
local shown = {number = found[1], kept = found[2]}
for n = #changes, 1, -1 do
    local entries = changes[n]
    for m = #entries - 3, 1, -4 do
        if entries[m] == name and entries[m + 1] == 'live' then shown[entries[m + 2]] = entries[m + 3] end
    end
end
give(shown.number)
give(shown.kept)
if wanted == 'kept' then wanted = shown.kept and string.match(shown.kept, '^%d+')
else wanted = wanted or shown.number end
give(wanted)
local build = wanted and (name .. ':' .. wanted)
local mine = {}
for _, entries in ipairs(changes) do
    for m = 1, #entries, 4 do
        if entries[m] == build then
            for n = m + 1, m + 3 do mine[#mine + 1] = entries[n] end
        end
    end
end
give_all(mine)
if not build then return table.concat(output) end
while at <= #input do
    local kind = take()
    if kind == 'state' then
        give_all(redis.call('HGETALL', p .. ':build:' .. build))
        give_all(redis.call('HGETALL', p .. ':blocked:' .. build))
    elseif kind == 'rows' then
        for _ = 1, number() do row(build, take()) end
    else
        local index = p .. ':index:' .. build .. ':' .. take()
        local from, to = take(), take()
        if kind == 'count' then
            give(tostring(redis.call('ZLEXCOUNT', index, from, to)))
        else
            local down, plain, limit = kind == 'down', take() == 'keys', take()
            local found
            if down then found = redis.call('ZREVRANGEBYLEX', index, to, from, 'LIMIT', 0, limit)
            else found = redis.call('ZRANGEBYLEX', index, from, to, 'LIMIT', 0, limit) end
            give(tostring(#found))
            for _, member in ipairs(found) do
                give(member)
                local key = member
                if not plain then key = string.sub(member, struct.unpack('>I4', member, #member - 3) + 1, -5) end
                row(build, key)
            end
        end
    end
end
return table.concat(output)
""",
    flags="allow-oom",
)
"""Reads of one generation: what has changed since a moment, as it was, and what there is now."""

SWEEP = _script(
    _FRAMES,
    _CHANGES,
    f"""
local dropped = redis.call('ZRANGE', p .. ':dropped', 0, 0, 'WITHSCORES')
if not dropped[1] or (oldest and oldest < tonumber(dropped[2])) then
    give(dropped[1] and '0' or false)
    return table.concat(output)
end
local index = p .. ':index:' .. dropped[1] .. ':'
local keys = redis.call('ZPOPMIN', index, {SWEPT_ROWS_MAX})
for n = 1, #keys, 2 do redis.call('UNLINK', p .. ':row:' .. dropped[1] .. ':' .. keys[n]) end
if #keys < 2 * {SWEPT_ROWS_MAX} then
    for _, name in ipairs(unframed(redis.call('HGET', p .. ':indexes', dropped[1]) or '')) do
        redis.call('UNLINK', index .. name)
    end
    redis.call('HDEL', p .. ':indexes', dropped[1])
    redis.call('ZREM', p .. ':dropped', dropped[1])
end
give('1')
return table.concat(output)
""",
    flags="allow-oom",
)
"""Removes some rows of what was dropped, which no snapshot shows: gives 1, 0 where it has to wait, or nothing left."""
