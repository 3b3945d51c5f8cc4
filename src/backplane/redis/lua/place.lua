-- KEYS: the user's rows. ARGV: device, row as JSON, its connection, its fence, "restore" or "".
local old = redis.call('HGET', KEYS[1], ARGV[1])
if old then
  local row = cjson.decode(old)
  local other = row.c ~= ARGV[3]
  -- A restored row never displaces another connection's: that one came while this node was away.
  if other and (ARGV[5] == 'restore' or row.f > tonumber(ARGV[4])) then
    return {0, old}
  end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return {1, old or ''}
