"""Models as data, told from the operator's side: declared, listed, tested against the gateway that runs."""

import json

from tests.prove.server import Gateway

MODELS = """
models:
  - {name: tuned, provider: sandbox, base: sandbox-priced, lifecycle: deprecated, retires_on: "9999-01-01"}
  - {name: bare, provider: sandbox}
"""


async def test_a_model_is_declared_listed_and_tested(gateway: Gateway) -> None:
    await gateway.apply(MODELS)
    listed = json.loads(gateway.command("models", "list", "--json").stdout)
    [tuned] = [row for row in listed if row["model"] == "tuned"]
    assert (tuned["base"], tuned["price"], tuned["lifecycle"]) == ("sandbox-priced", "sandbox-priced@1", "deprecated")
    assert gateway.command("models", "list").returncode == 0
    tested = gateway.command("models", "test", "tuned", "--url", gateway.url, "--json")
    assert tested.returncode == 0, tested.stderr
    [report] = json.loads(tested.stdout)
    assert (report["state"], report["price_id"]) == ("answered", "sandbox-priced@1")
    admin = gateway.quickstart.admin_key
    told = await gateway.ask("GET", f"/v1/requests/{report['request_id']}", key=admin)
    assert told["cost_usd"] == report["cost_usd"]


async def test_a_test_that_fails_says_what_to_do(gateway: Gateway) -> None:
    await gateway.apply(MODELS)
    failed = gateway.command("models", "test", "bare", "--url", gateway.url)
    assert failed.returncode == 1
    assert "model_unpriced" in failed.stderr
    assert "Declare a price for it" in failed.stderr
    away = gateway.command("models", "test", "bare", "--url", "http://127.0.0.1:1")
    assert away.returncode == 1
    assert "penstock serve" in away.stderr
    assert "Traceback" not in failed.stderr + away.stderr
