-- What `Account::settle` does, for an identity in a hash: `s` and `e` the start and the end of the period, `u` what is used in it,
-- and for each lease `l` and its number, with `TOKENS:UNTIL:DEMAND`.
-- ARGV: now, the lease, the start of the period, the limit, used, holds, wants (0 or 1), demand, until, for how long the hash is
-- kept in milliseconds, FEW, MOST_DEMAND, PART, and the end of the period.
local name, now, own = KEYS[1], tonumber(ARGV[1]), 'l' .. ARGV[2]
local start, limit, spent, holds = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local wants, demand, till = ARGV[7] == '1', tonumber(ARGV[8]), tonumber(ARGV[9])
local few, most, part, till_end = tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13]), tonumber(ARGV[14])
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
    local tokens, over, of = string.match(value, '^(%d+):(%d+):(%d+)$')
    if tokens and tonumber(over) > now then
      others, demands, count = others + tonumber(tokens), demands + tonumber(of), count + 1
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
local granted = math.min(share, left <= few and free or math.ceil(free / part))
if not wants or granted <= holds or till <= now then granted = 0 end
redis.call('HSET', name, 's', string.format('%.0f', counted), 'e', string.format('%.0f', ended), 'u', string.format('%.0f', used))
local leased = others
if till > now then
  leased = leased + holds + granted
  redis.call('HSET', name, own, string.format('%.0f:%.0f:%.0f', holds + granted, till, demand))
else
  redis.call('HDEL', name, own)
end
redis.call('PEXPIRE', name, ARGV[10])
return { used, leased, granted }
