-- KEYS: the user's rows. ARGV: device, row as JSON, its connection, its fence, "restore" or "".
local old = redis.call('HGET', KEYS[1], ARGV[1])
if old then
  local row = cjson.decode(old)
  local other = row.c ~= ARGV[3]
  -- Fences are the store's: the higher one came later, also where nodes could not hear each other.
  local fence = tonumber(ARGV[4])
  if other and (row.f > fence or (ARGV[5] == 'restore' and row.f == fence)) then
    return {0, old}
  end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return {1, old or ''}
