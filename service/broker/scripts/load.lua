-- How much a lane has before it, and how fast one slot of a worker gets through it.
-- Keys: load, speed. ARGV: 2 lane.
-- Returns {pixels accepted and not done, pixels per second as text, '' where nothing was ever measured}.
return {
  tonumber(redis.call('HGET', PREFIX .. 'load', ARGV[2]) or 0),
  redis.call('HGET', PREFIX .. 'speed', ARGV[2]) or '',
}
