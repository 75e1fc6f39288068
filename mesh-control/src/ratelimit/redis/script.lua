-- Counts hits under several limits at once, as `Counter::take` does, and says of each how many there are with them.
-- KEYS: of each limit the counter of this window and, where the window slides, that of the one before.
-- ARGV: of each limit the hits (negative: given back), the limit, how long the counter is kept in milliseconds, and which part
--       of the window before counts, in millionths, or -1 where windows are fixed.
local counts, key = {}, 0
for at = 1, #ARGV, 4 do
  local hits, limit, kept, share = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), ARGV[at + 2], tonumber(ARGV[at + 3])
  key = key + 1
  local name, carried, with = KEYS[key], 0, 0
  if share >= 0 then
    key = key + 1
    carried = math.floor(tonumber(redis.call('GET', KEYS[key]) or '0') * share / 1000000)
  end
  if share < 0 and hits > 0 then
    with = redis.call('INCRBY', name, ARGV[at])
    if with == hits then redis.call('PEXPIRE', name, kept) end
  else
    local used = tonumber(redis.call('GET', name) or '0')
    with = math.max(used + hits, 0)
    if with ~= used and (hits < 0 or carried + with <= limit) then
      redis.call('SET', name, string.format('%.0f', with), 'PX', kept)
    end
  end
  counts[#counts + 1] = carried + with
end
return counts
