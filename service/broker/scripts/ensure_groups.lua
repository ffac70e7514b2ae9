-- Makes the lanes' streams and groups where they are missing.
-- Keys: work:{lane}. ARGV: 2... lanes.
for i = 2, #ARGV do
  ensure_group(ARGV[i])
end
return 1
