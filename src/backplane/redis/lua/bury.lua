-- KEYS: the user's rows. ARGV: dead node, channel, PUBLISH or SPUBLISH, envelope with @D, @C and @T.
-- Removing and announcing are one step: a claimer that dies leaves nothing removed and untold.
local rows = redis.call('HGETALL', KEYS[1])
local removed = 0
local time = redis.call('TIME')
local now = time[1] .. string.format('%03d', math.floor(tonumber(time[2]) / 1000))
for i = 1, #rows, 2 do
  local row = cjson.decode(rows[i + 1])
  if row.n == ARGV[1] then
    redis.call('HDEL', KEYS[1], rows[i])
    local told = string.gsub(ARGV[4], '@D', rows[i])
    told = string.gsub(told, '@C', row.c)
    told = string.gsub(told, '"@T"', now)
    redis.call(ARGV[3], ARGV[2], told)
    removed = removed + 1
  end
end
return removed
