-- KEYS: alive, claimed. ARGV: time to live in ms.
if redis.call('EXISTS', KEYS[2]) == 1 then
  return -1
end
local known = redis.call('EXISTS', KEYS[1])
redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
return known
