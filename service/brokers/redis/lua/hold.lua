-- Keeps a process's hold on webhooks and hands it those that nobody holds.
-- ARGV: hold_s, how many at most, request that is held ...
-- -> requests that are held from now on

local key, time = P .. 'webhooks', now()
local until_s = time + tonumber(ARGV[1])
for index = 3, #ARGV do
  redis.call('ZADD', key, 'XX', until_s, ARGV[index])
end
local free = redis.call('ZRANGEBYSCORE', key, '-inf', time, 'LIMIT', 0, ARGV[2])
for _, request in ipairs(free) do
  redis.call('ZADD', key, 'XX', until_s, request)
end
return free
