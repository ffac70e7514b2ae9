-- Takes from a caller's quotas, from all or from none. A quota is a bucket that a window fills; kept is when it will be full.
-- What is more than a whole bucket is let in when that is full, and leaves it in debt.
-- Keys: quota:{policy}:{payer}. ARGV: 2 the window (ms), then for each quota: its policy, who pays, what a window gives,
--       the amount; below 0 it is given back, 0 only asks.
-- Returns {1 or 0, then for each quota the time until it is full (ms, as text)}.
local SLACK_MS = 1  -- of rounding, for a quota's last piece
local window, now = tonumber(ARGV[2]), now_ms()
local names, debts, prices, fits = {}, {}, {}, true
for i = 3, #ARGV, 4 do
  local name = key('quota', ARGV[i] .. ':' .. ARGV[i + 1])
  local debt = math.max(0, tonumber(redis.call('GET', name) or now) - now)
  local price = tonumber(ARGV[i + 3]) * window / tonumber(ARGV[i + 2])
  if price > 0 and debt > 0 and (price > window or debt + price > window + SLACK_MS) then
    fits = false
  end
  table.insert(names, name)
  table.insert(debts, debt)
  table.insert(prices, price)
end
local answer = {fits and 1 or 0}
for i, name in ipairs(names) do
  if fits and prices[i] ~= 0 then
    debts[i] = math.max(0, debts[i] + prices[i])
    if debts[i] > 0 then
      redis.call('SET', name, string.format('%.3f', now + debts[i]), 'PX', string.format('%d', math.ceil(debts[i])))
    else
      redis.call('DEL', name)
    end
  end
  table.insert(answer, string.format('%.3f', debts[i]))
end
return answer
