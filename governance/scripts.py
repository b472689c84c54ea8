"""What is said to Redis about limits: one script for each act, and the commands that run them. No connection here.

Every script comes to the same levels as memory.py. Per scope Redis keeps a hash of levels and a sorted set of permits
by expiry, both gone by themselves when they are idle.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache

from governance.counters import UNIT, Claim, Scope, Standing, Taken

Command = tuple[str | int, ...]

# Longer than any turn may take, so that only a dead process's permits ever expire.
_LEASE_MILLISECONDS = 900_000

# ARGV[1], everywhere: milliseconds, or -1 for Redis' own clock.
_NOW = """
local now = tonumber(ARGV[1])
if now < 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
"""

# Per scope: a hash of levels, and a sorted set of permits by expiry.
_REOPEN = f"""{_NOW}
redis.call('ZADD', KEYS[1], now + {_LEASE_MILLISECONDS}, ARGV[2])
redis.call('PEXPIRE', KEYS[1], {_LEASE_MILLISECONDS})
"""

# Limits come as numbers, 0 for none. A clock that ran backwards drains nothing and is followed all the same.
_BUCKETS = f"""{_NOW}
local function drained(level, limit, passed)
  if limit == 0 then return 0 end
  return math.max(0, (tonumber(level) or 0) - passed * limit)
end
local function levels(key, per_minute, tokens_per_minute)
  local kept = redis.call('HMGET', key, 'requests', 'tokens', 'at')
  local passed = math.max(0, now - (tonumber(kept[3]) or now))
  return drained(kept[1], per_minute, passed), drained(kept[2], tokens_per_minute, passed)
end
local function keep(key, requests, tokens, per_minute, tokens_per_minute)
  if requests == 0 and tokens == 0 then return redis.call('DEL', key) end
  local empty = math.max(requests / math.max(1, per_minute), tokens / math.max(1, tokens_per_minute))
  redis.call('HSET', key, 'requests', requests, 'tokens', tokens, 'at', now)
  redis.call('PEXPIRE', key, math.ceil(empty) + {UNIT})
end
"""

# ARGV[2]: the permit, ARGV[3]: tokens, then three limits per scope.
# Answers 1 or 0, then requests, tokens and calls of each scope.
_TAKE = f"""{_BUCKETS}
local count, fits, scopes, answer = tonumber(ARGV[3]), true, {{}}, {{}}
for i = 1, #KEYS / 2 do
  local each = {{levels = KEYS[2 * i - 1], calls = KEYS[2 * i], open = 0}}
  each.rpm, each.tpm, each.most = tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2]), tonumber(ARGV[3 * i + 3])
  each.requests, each.tokens = levels(each.levels, each.rpm, each.tpm)
  if each.most > 0 then
    redis.call('ZREMRANGEBYSCORE', each.calls, '-inf', now)
    each.open = redis.call('ZCARD', each.calls)
  end
  fits = fits and not (each.rpm > 0 and each.requests + {UNIT} > each.rpm * {UNIT})
    and not (each.tpm > 0 and each.tokens + count * {UNIT} > each.tpm * {UNIT})
    and not (each.most > 0 and each.open >= each.most)
  scopes[i] = each
end
answer[1] = fits and 1 or 0
for i, each in ipairs(scopes) do
  if fits then
    if each.rpm > 0 then each.requests = each.requests + {UNIT} end
    if each.tpm > 0 then each.tokens = each.tokens + count * {UNIT} end
    keep(each.levels, each.requests, each.tokens, each.rpm, each.tpm)
    if each.most > 0 then
      each.open = each.open + 1
      redis.call('ZADD', each.calls, now + {_LEASE_MILLISECONDS}, ARGV[2])
      redis.call('PEXPIRE', each.calls, {_LEASE_MILLISECONDS})
    end
  end
  answer[3 * i - 1], answer[3 * i], answer[3 * i + 1] = each.requests, each.tokens, each.open
end
return answer
"""

# ARGV[2]: tokens more, or fewer, then two limits per scope.
_SETTLE = f"""{_BUCKETS}
for i = 1, #KEYS do
  local rpm, tpm = tonumber(ARGV[2 * i + 1]), tonumber(ARGV[2 * i + 2])
  local requests, tokens = levels(KEYS[i], rpm, tpm)
  if tpm > 0 then tokens = math.max(0, tokens + tonumber(ARGV[2]) * {UNIT}) end
  keep(KEYS[i], requests, tokens, rpm, tpm)
end
"""

SCRIPTS = (_TAKE, _SETTLE, _REOPEN)


def take(claim: Claim, now: int) -> Command:
    """Count the claim in all of its scopes, or in none; `read` understands the answer. now: milliseconds, or -1."""
    keys = [key for scope in claim.scopes for key in (_levels(scope), _calls(scope))]
    limits = [limit for scope in claim.scopes for limit in (*_rates(scope), scope.allowance.concurrent or 0)]
    return ("EVALSHA", _sha(_TAKE), len(keys), *keys, now, claim.permit, claim.tokens, *limits)


def settle(claim: Claim, difference: int, now: int) -> Command:
    """Count so many tokens more, or fewer, in all scopes."""
    keys = [_levels(scope) for scope in claim.scopes]
    rates = [rate for scope in claim.scopes for rate in _rates(scope)]
    return ("EVALSHA", _sha(_SETTLE), len(keys), *keys, now, difference, *rates)


def release(claim: Claim) -> Iterator[Command]:
    """The claim's permit is no longer open; once or more often is the same."""
    for scope in claim.scopes:
        if scope.allowance.concurrent:
            yield ("ZREM", _calls(scope), claim.permit)


def reopen(claim: Claim, now: int) -> Iterator[Command]:
    """The claim's permit is open, whatever Redis thinks of it and of the limit."""
    for scope in claim.scopes:
        if scope.allowance.concurrent:
            yield ("EVALSHA", _sha(_REOPEN), 1, _calls(scope), now, claim.permit)


def read(claim: Claim, answer: Sequence[int]) -> Taken:
    """What `take` was answered."""
    admitted, *numbers = answer
    triples = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
    standings = (Standing(scope, *triple) for scope, triple in zip(claim.scopes, triples, strict=True))
    return Taken(admitted == 1, tuple(standings))


def _rates(scope: Scope) -> tuple[int, int]:
    return scope.allowance.requests_per_minute or 0, scope.allowance.tokens_per_minute or 0


# The braces keep an app's counters on one node of a cluster, where one script may touch them all.
def _levels(scope: Scope) -> str:
    return f"penstock:{{{scope.place}}}:{scope.kind}:{scope.name}:levels"


def _calls(scope: Scope) -> str:
    return f"penstock:{{{scope.place}}}:{scope.kind}:{scope.name}:calls"


@cache
def _sha(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
