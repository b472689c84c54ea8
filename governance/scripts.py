"""What is said to Redis about limits: one script for each act, and the commands that run them. No connection here.

Every script comes to the same levels as memory.py. Per scope Redis keeps a hash of levels and a sorted set of permits
by expiry, both gone by themselves when they are idle.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

from governance.counters import UNIT, Claim, Scope, Standing, Taken
from governance.redis_wire import Command

# Living processes renew the permits of open calls three times within it, so that only a dead one's ever expire.
LEASE_SECONDS = 30
_LEASE_MILLISECONDS = LEASE_SECONDS * 1000
_PERMITS_MAX = 500

# ARGV[1], everywhere: milliseconds, or -1 for Redis' own clock.
_NOW = """
local now = tonumber(ARGV[1])
if now < 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
"""

# ARGV from 2 on: permits.
_REOPEN = f"""{_NOW}
for i = 2, #ARGV do
  redis.call('ZADD', KEYS[1], now + {_LEASE_MILLISECONDS}, ARGV[i])
end
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

# ARGV[2]: the permit, ARGV[3]: tokens more, or fewer, then three limits per scope.
_END = f"""{_BUCKETS}
local difference = tonumber(ARGV[3])
for i = 1, #KEYS / 2 do
  local rpm, tpm, most = tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2]), tonumber(ARGV[3 * i + 3])
  if tpm > 0 and difference ~= 0 then
    local requests, tokens = levels(KEYS[2 * i - 1], rpm, tpm)
    keep(KEYS[2 * i - 1], requests, math.max(0, tokens + difference * {UNIT}), rpm, tpm)
  end
  if most > 0 then redis.call('ZREM', KEYS[2 * i], ARGV[2]) end
end
"""

SCRIPTS = (_TAKE, _END, _REOPEN)


def take(claim: Claim, now: int) -> Command:
    """Count the claim in all of its scopes, or in none; `read` understands the answer. now: milliseconds, or -1."""
    return _on_scopes(_TAKE, claim, now, claim.tokens)


def end(claim: Claim, difference: int, now: int) -> Command:
    """The claim's permit is no longer open, and so many tokens more, or fewer, were used."""
    return _on_scopes(_END, claim, now, difference)


def reopen(claims: Iterable[Claim], now: int) -> Iterator[Command]:
    """The claims' permits are open for a lease from now, whatever Redis thinks of them and of the limits."""
    permits: dict[str, list[str]] = {}
    for claim in claims:
        for scope in claim.scopes:
            if scope.allowance.concurrent:
                permits.setdefault(f"{_place(scope)}:calls", []).append(claim.permit)
    for key, all_of_it in permits.items():
        for at in range(0, len(all_of_it), _PERMITS_MAX):
            yield ("EVALSHA", _sha(_REOPEN), 1, key, now, *all_of_it[at : at + _PERMITS_MAX])


def read(claim: Claim, answer: Sequence[int]) -> Taken:
    """What `take` was answered."""
    standings = [
        Standing(scope, *answer[at : at + 3]) for scope, at in zip(claim.scopes, range(1, len(answer), 3), strict=True)
    ]
    return Taken(answer[0] == 1, tuple(standings))


def _on_scopes(script: str, claim: Claim, now: int, tokens: int) -> Command:
    keys: list[str] = []
    limits: list[int] = []
    for scope in claim.scopes:
        place, own = _place(scope), scope.allowance
        keys += (f"{place}:levels", f"{place}:calls")
        limits += (own.requests_per_minute or 0, own.tokens_per_minute or 0, own.concurrent or 0)
    return ("EVALSHA", _sha(script), len(keys), *keys, now, claim.permit, tokens, *limits)


# The braces keep an app's counters on one node of a cluster, where one script may touch them all.
def _place(scope: Scope) -> str:
    return f"penstock:{{{scope.place}}}:{scope.kind}:{scope.name}"


@cache
def _sha(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
