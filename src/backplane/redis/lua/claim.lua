-- KEYS: alive, claimed, claimer. ARGV: who claims, for how long in ms, how long the mark stays in ms.
-- The mark is what the node finds when it was only asleep; the claimer's name goes when it dies.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
local by = redis.call('GET', KEYS[3])
if by and by ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[3])
return 1
