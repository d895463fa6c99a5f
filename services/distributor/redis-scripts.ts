import { GARBAGE_REPLY } from './redis-garbage.ts';

/**
 * What must be atomic in the directory. All keys of a layer carry its hash tag, so that they lie in one slot of a Redis Cluster:
 *
 *     kd:{hex}:meta      hash: spans = span count, reads = spans read from the registry, each as often as it was, any and b:NODE =
 *                        bits set in the bitmaps of these names: one that has another number was cut short or overwritten
 *     kd:{hex}:members   set of nodes
 *     kd:{hex}:b:NODE    bitmap of the spans the node holds (Redis numbers bits from the top of a byte: see redis-directory.ts)
 *     kd:{hex}:any       bitmap: the union of them
 *     kd:{hex}:read      bitmap: spans that were ever read from the registry
 *     kd:{hex}:unread    sorted set: spans somebody wants, nobody has and nobody fetches, or only one who is slow; score = span
 *     kd:{hex}:leases    hash: span -> NODE|since|until; since = when it was given, or its holder last had read another
 *     kd:{hex}:waiting   hash: node -> load|room
 */
export const LAYER_KEYS = ['meta', 'members', 'any', 'unread', 'leases', 'waiting', 'read'] as const;

/** Scripts that find what they cannot read, or a bitmap with another number of bits, end with the error GARBAGE. */
const HEAD = `
local meta, members, any, unread, leases, waiting = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local once, own = KEYS[7], KEYS[8]
local function parts(text)
  local node, since, till = string.match(text, '^(.*)|(%d+)|(%d+)$')
  if not node then error('${GARBAGE_REPLY} ' .. leases) end
  return node, tonumber(since), tonumber(till)
end
local function lease(span)
  local text = redis.call('HGET', leases, span)
  if not text then return nil end
  local node, since, till = parts(text)
  return { node = node, since = since, till = till }
end
local function bits(name, key)
  local known, count = redis.call('HGET', meta, name), redis.call('BITCOUNT', key)
  if known ~= tostring(count) and (known or count > 0) then error('${GARBAGE_REPLY} ' .. key) end
end
local function counted(name, key)
  redis.call('HSET', meta, name, redis.call('BITCOUNT', key))
end
local function want(span)
  if redis.call('GETBIT', any, span) == 0 and redis.call('HEXISTS', leases, span) == 0 then
    redis.call('ZADD', unread, span, span)
  end
end
local function free(span)
  redis.call('HDEL', leases, span)
  want(span)
end
local function give(span, node, now, ms)
  redis.call('ZREM', unread, span)
  redis.call('HSET', leases, span, node .. '|' .. now .. '|' .. (now + ms))
end
local function unite()
  redis.call('DEL', own)
  if #KEYS > 8 then redis.call('BITOP', 'OR', any, unpack(KEYS, 9)) else redis.call('DEL', any) end
  counted('any', any)
end
local function read(span)
  redis.call('ZREM', unread, span)
  redis.call('HDEL', leases, span)
end
`;

/**
 * KEYS also, where the node says anew all that it has: the bitmaps of all others. ARGV: node, now, lease's ms, its age ms, keep ms,
 * JSON of the change (span lists). Returns how long leases of spans were out that it has read.
 */
export const CHANGE = `${HEAD}
local node, now, ms, age, keep = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local took = {}
local change = cjson.decode(ARGV[6])
bits('any', any)
bits('b:' .. node, own)
if change.anew then unite() end
redis.call('HSET', meta, 'spans', change.spans)
redis.call('SADD', members, node)
for _, span in ipairs(change.read) do
  local known = lease(span)
  if known and known.node == node then took[#took + 1] = now - known.since end
end
for _, span in ipairs(change.gained) do
  redis.call('SETBIT', own, span, 1)
  redis.call('SETBIT', any, span, 1)
  read(span)
end
counted('any', any)
counted('b:' .. node, own)
for _, span in ipairs(change.read) do redis.call('SETBIT', once, span, 1) end
if #took > 0 then
  -- What it reads one after the other is not late while it goes on.
  local flat = redis.call('HGETALL', leases)
  for i = 1, #flat, 2 do
    local holder, since, till = parts(flat[i + 1])
    if holder == node and now - since < age then
      redis.call('HSET', leases, flat[i], node .. '|' .. now .. '|' .. till)
    end
  end
end
if #change.read > 0 then redis.call('HINCRBY', meta, 'reads', #change.read) end
for _, span in ipairs(change.released) do
  local known = lease(span)
  if known and known.node == node then free(span) end
end
for _, span in ipairs(change.fetching) do
  local known = lease(span)
  if not known then give(span, node, now, ms)
  elseif known.node == node and now - known.since < age then
    redis.call('HSET', leases, span, node .. '|' .. known.since .. '|' .. (now + ms))
  end
end
for _, span in ipairs(change.wants) do want(span) end
if change.waiting then redis.call('HSET', waiting, node, change.waiting) end
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, keep) end
return took
`;

/**
 * KEYS also: the bitmaps of all that stay, only needed where the node holds spans. ARGV: node, whether they are there: 0 or 1. Returns how
 * many members are left; -1 = they are needed, and nothing was changed.
 */
export const LEAVE = `${HEAD}
-- Also where its bitmap is lost: the union still has its bits.
local counted_bits = redis.call('HGET', meta, 'b:' .. ARGV[1])
local held = redis.call('EXISTS', own) == 1 or (counted_bits and counted_bits ~= '0')
if held and ARGV[2] == '0' then return -1 end
redis.call('SREM', members, ARGV[1])
redis.call('HDEL', waiting, ARGV[1])
redis.call('HDEL', meta, 'b:' .. ARGV[1])
if redis.call('SCARD', members) == 0 then
  redis.call('DEL', meta, any, unread, leases, waiting, once, own)
  return 0
end
if held then unite() end
for span, text in pairs((function(flat)
  local map = {}
  for i = 1, #flat, 2 do map[flat[i]] = flat[i + 1] end
  return map
end)(redis.call('HGETALL', leases))) do
  if string.sub(text, 1, #ARGV[1] + 1) == ARGV[1] .. '|' then free(span) end
end
return redis.call('SCARD', members)
`;

/** ARGV: now, lease's age ms, samples, unread. Returns [members, leases, waiting pairs, unread, late nodes]. */
export const LOOK = `${HEAD}
local now, age = tonumber(ARGV[1]), tonumber(ARGV[2])
local flat, out, late = redis.call('HGETALL', leases), 0, {}
bits('any', any)
for i = 1, #flat, 2 do
  local node, since, till = parts(flat[i + 1])
  -- One that is too old stays: what its holder says of it from now on changes nothing.
  if now - since >= age then
    redis.call('ZADD', unread, flat[i], flat[i])
    late[#late + 1] = node
  elseif till <= now then free(flat[i])
  else out = out + 1 end
end
local sample = {}
if redis.call('HLEN', waiting) > 0 then
  sample = redis.call('HRANDFIELD', waiting, ARGV[3], 'WITHVALUES')
end
return { redis.call('SCARD', members), out, sample, redis.call('ZRANGE', unread, 0, ARGV[4] - 1), late }
`;

/** ARGV: now, lease ms, then for each grant node, number of spans, spans. Returns the same list of what was given. */
export const GRANT = `${HEAD}
local now, ms = tonumber(ARGV[1]), tonumber(ARGV[2])
local given, at = {}, 3
while at <= #ARGV do
  local node, count = ARGV[at], tonumber(ARGV[at + 1])
  local spans = {}
  for i = at + 2, at + 1 + count do
    local known = lease(ARGV[i])
    if redis.call('ZSCORE', unread, ARGV[i]) and not (known and known.node == node) then spans[#spans + 1] = ARGV[i] end
  end
  if #spans > 0 and redis.call('HDEL', waiting, node) == 1 then
    given[#given + 1] = node
    given[#given + 1] = tostring(#spans)
    for _, span in ipairs(spans) do
      give(span, node, now, ms)
      given[#given + 1] = span
    end
  end
  at = at + 2 + count
end
return given
`;

/**
 * ARGV: node, now, lease's ms, its age ms, JSON list of nodes that are no use to it, spans. Returns for each span who fetches it: another node, or
 * '' = leased to the asker now.
 */
export const LEASE = `${HEAD}
local node, now, ms, age = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local useless = { [node] = true }
for _, other in ipairs(cjson.decode(ARGV[5])) do useless[other] = true end
local answer = {}
for i = 6, #ARGV do
  local known = lease(ARGV[i])
  if known and known.till > now and now - known.since < age and not useless[known.node] then
    answer[#answer + 1] = known.node
  else
    give(ARGV[i], node, now, ms)
    answer[#answer + 1] = ''
  end
end
return answer
`;
