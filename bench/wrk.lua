-- Asks with a token of its own each time, where a file of them is given (one a line, from the given byte on, and
-- round again); and says what it found in one line of JSON.
function init(args)
  if not args[1] then return end
  local tokens = assert(io.open(args[1]))
  tokens:seek("set", tonumber(args[2]))
  request = function()
    local token = tokens:read("*l")
    if not token then
      tokens:seek("set", 0)
      token = tokens:read("*l")
    end
    wrk.headers["Authorization"] = "Bearer " .. token
    return wrk.format()
  end
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '{"requests": %d, "us": %d, "p50_us": %d, "p99_us": %d, "refused": %d, "broken": %d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.status, e.connect + e.read + e.write + e.timeout
  ))
end
