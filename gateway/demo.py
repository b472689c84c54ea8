"""The first start on an empty store: a department, an app, policies, budgets, two people, and keys that work."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from gateway.secrets import write_private
from governance import Declaration, Keys, NewKey, Register
from kernel import Role

FIRST_START = "first-start"
DEMO_KEYS = 4

_AUTHOR, _APPROVER = "demo-author", "demo-approver"

_DECLARATIONS = (
    Declaration("department", "demo", {"title": "Demo department"}),
    Declaration("use_case", "trial", {"purpose": "Trying Penstock without a provider", "owner": _AUTHOR}),
    Declaration(
        "app",
        "demo-app",
        {"department": "demo", "data_class": "internal", "use_cases": ["trial"], "requests_per_minute": 60_000},
    ),
    Declaration("user", _AUTHOR, {"department": "demo", "roles": ["prompt_owner"]}),
    Declaration("user", _APPROVER, {"department": "demo", "roles": ["prompt_owner"]}),
    Declaration("provider", "sandbox", {"dialect": "sandbox"}),
    Declaration("model", "sandbox", {"provider": "sandbox"}),
    Declaration("model", "sandbox-priced", {"provider": "sandbox"}),
    Declaration("alias", "fast", {"targets": ["sandbox"], "description": "Whatever answers first"}),
    Declaration("alias", "quality", {"targets": ["sandbox-priced"], "description": "The best answer there is"}),
    Declaration("alias", "long_context", {"targets": ["sandbox-priced", "sandbox"], "description": "Long prompts"}),
    Declaration("alias", "code", {"targets": ["sandbox-priced", "sandbox"], "description": "Code, read and written"}),
    Declaration("alias", "internal", {"targets": ["sandbox"], "description": "Models that run in the house"}),
    Declaration(
        "alias",
        "auto",
        {
            "targets": ["sandbox", "sandbox-priced"],
            "choose": "cheapest",
            "rules": [
                {"when": {"prompt_tokens_over": 100_000}, "use": "long_context"},
                {"when": {"task_type": ["code"]}, "use": "code"},
                {"when": {"max_latency_ms_under": 1000}, "use": "fast"},
                {"when": {"quality_level": ["critical"]}, "use": "quality"},
            ],
            "description": "Chosen by what the request is; the cheapest otherwise",
        },
    ),
    Declaration("price", "sandbox", {"model": "sandbox", "usd_per_million_tokens": {"input": "0", "output": "0"}}),
    Declaration(
        "price", "sandbox-priced", {"model": "sandbox-priced", "usd_per_million_tokens": {"input": "1", "output": "4"}}
    ),
    Declaration(
        "policy",
        "demo-sandbox",
        {
            "models": ["sandbox", "sandbox-priced"],
            "departments": ["demo"],
            "use_cases": ["trial"],
            "data_class": "confidential",
        },
    ),
    Declaration("budget", "demo-month", {"scope": "department", "of": "demo", "period": "month", "limit_usd": "100"}),
    Declaration("budget", "demo-app-day", {"scope": "app", "of": "demo-app", "period": "day", "limit_usd": "10"}),
)


async def declare_demo(register: Register, keys: Keys, reload: Callable[[], Awaitable[None]]) -> dict[str, str]:
    """Declare the demo and make its keys. Returns them by name; they are shown nowhere else afterwards."""
    await register.apply(list(_DECLARATIONS), by=FIRST_START)
    await reload()
    wanted = {
        "app_key": NewKey(name="demo-app", app="demo-app"),
        "admin_key": NewKey(name="demo-admin", roles=frozenset({Role.PLATFORM_ADMIN})),
        "author_key": NewKey(name=_AUTHOR, user=_AUTHOR),
        "approver_key": NewKey(name=_APPROVER, user=_APPROVER),
    }
    return {name: (await keys.create(new, by=FIRST_START)).key for name, new in wanted.items()}


def write_quickstart(path: Path, base_url: str, keys: dict[str, str]) -> None:
    """Write `quickstart.json`, readable by this user alone."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, {"base_url": base_url, **keys})


def read_quickstart(path: Path, base_url: str) -> dict[str, str]:
    """What `quickstart.json` holds; the port may have moved since, so the address is brought up to date."""
    kept = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    if kept.get("base_url") != base_url:
        kept["base_url"] = base_url
        write_private(path, kept)
    return kept


def snippet(base_url: str, app_key: str, data_dir: Path) -> str:
    """What to copy into a terminal and into Python to see the gateway answer."""
    return f"""
Penstock answers on {base_url} (keys: {data_dir / "quickstart.json"})

  curl -s {base_url}/chat/completions \\
    -H 'Authorization: Bearer {app_key}' -H 'Content-Type: application/json' \\
    -d '{{"model": "sandbox", "messages": [{{"role": "user", "content": "Hello"}}]}}'

  from openai import OpenAI
  client = OpenAI(base_url="{base_url}", api_key="{app_key}")
  print(client.chat.completions.create(
      model="sandbox", messages=[{{"role": "user", "content": "Hello"}}]).choices[0].message.content)
"""
