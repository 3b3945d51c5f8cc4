-- KEYS: the user's rows. ARGV: device, connection.
local old = redis.call('HGET', KEYS[1], ARGV[1])
if old and cjson.decode(old).c == ARGV[2] then
  return redis.call('HDEL', KEYS[1], ARGV[1])
end
return 0
