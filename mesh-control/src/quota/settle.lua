-- What `Account::settle` does, for an identity in a hash: `s` and `e` the start and the end of the period, `u` what is used in it,
-- and for each lease `l` and its number, with `TOKENS:UNTIL:DEMAND:CLAIMED`.
-- ARGV: now, the lease, the start of the period, the limit, used, holds, wants (0 or 1), demand, until, for how long the hash is
-- kept in milliseconds, FEW, MOST_DEMAND, PART, the end of the period, shown, and how far the clock of who asks may be from that of
-- this server, by which all go. Where it is farther, nothing is settled, and the answer is -1 and the time here.
local name, now, own = KEYS[1], tonumber(ARGV[1]), 'l' .. ARGV[2]
local start, limit, spent, holds = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local wants, demand, till = ARGV[7] == '1', tonumber(ARGV[8]), tonumber(ARGV[9])
local few, most, part, till_end = tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13]), tonumber(ARGV[14])
local shown, apart = tonumber(ARGV[15]), tonumber(ARGV[16])
local time = redis.call('TIME')
local here = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if math.abs(here - now) > apart then return { -1, here, 0 } end
local claimed = 0
local counted, ended, used, others, demands, count = 0, 0, 0, 0, 0, 0
local fields = redis.call('HGETALL', name)
for at = 1, #fields, 2 do
  local field, value = fields[at], fields[at + 1]
  if field == 's' then
    counted = tonumber(value)
  elseif field == 'e' then
    ended = tonumber(value)
  elseif field == 'u' then
    used = tonumber(value)
  elseif field ~= own then
    local tokens, over, of, claim = string.match(value, '^(%d+):(%d+):(%d+):(%d+)$')
    if tokens and tonumber(over) > now then
      others, demands, count = others + tonumber(tokens), demands + tonumber(of), count + 1
      claimed = claimed + tonumber(claim)
    else
      redis.call('HDEL', name, field)
    end
  end
end
if (start ~= counted or till_end ~= ended) and till_end ~= counted then counted, ended, used = start, till_end, 0 end
used = used + spent
local left = math.max(limit - used, 0)
local free = math.max(left - others - holds, 0)
if demand == 0 then
  demand = 1
  if count > 0 then demand = math.max(math.floor(demands / count), 1) end
else
  demand = math.min(demand, most)
end
local share = math.ceil(left * demand / (demand + demands))
local claims = math.max((left <= few and left or math.ceil(left / part)) - claimed, 0)
local granted = math.min(share, left <= few and free or math.ceil(free / part), math.max(shown + claims, 1))
if not wants or granted <= holds or till <= now then granted = 0 end
redis.call('HSET', name, 's', string.format('%.0f', counted), 'e', string.format('%.0f', ended), 'u', string.format('%.0f', used))
local leased = others
if till > now then
  leased = leased + holds + granted
  local tokens = holds + granted
  redis.call('HSET', name, own, string.format('%.0f:%.0f:%.0f:%.0f', tokens, till, demand, math.max(tokens - shown, 0)))
else
  redis.call('HDEL', name, own)
end
redis.call('PEXPIRE', name, ARGV[10])
return { used, leased, granted }
