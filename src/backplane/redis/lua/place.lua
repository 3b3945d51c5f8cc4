-- KEYS: the user's rows. ARGV: device, row as JSON, its connection, its fence, its epoch, "restore" or "".
-- As Row::outranks has it.
local old = redis.call('HGET', KEYS[1], ARGV[1])
if old then
  local row = cjson.decode(old)
  local other = row.c ~= ARGV[3]
  -- Fences are the store's: the higher one came later, also where nodes could not hear each other.
  local fence = tonumber(ARGV[4])
  local comparable = row.e == nil or row.e == ARGV[5]
  if other and comparable and (row.f > fence or (ARGV[6] == 'restore' and row.f == fence)) then
    return {0, old}
  end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return {1, old or ''}
