"""What docs/guides/deployment.md tells people to type is there to be typed; wide.image and the backup's test run it."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from gateway.cli import app
from tests.deploy.compose import read_compose

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/deployment.md").read_text()
TYPED = "\n".join(re.findall(r"^```\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE))


def test_the_recipe_for_secrets_is_the_one_that_is_tested() -> None:
    example = (ROOT / "deploy/.env.example").read_text()
    recipe = [
        line.removeprefix("#").strip() for line in example.splitlines() if line.startswith(("#   (", "#    printf"))
    ]
    assert " ".join(recipe) in " ".join(TYPED.split())


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`?\b((?:deploy|tests)/[\w./*-]+\w)", GUIDE))))
def test_every_file_that_is_named_is_there(path: str) -> None:
    assert list(ROOT.glob(path)), path


@pytest.mark.parametrize("line", [line for line in TYPED.splitlines() if line.startswith("docker compose")])
def test_compose_is_told_of_services_that_it_has(line: str) -> None:
    words = [word for word in line.split()[2:] if not word.startswith("-")]
    if words[0] in {"exec", "run"} or "--no-deps" in line:
        assert words[1] in read_compose(ROOT / "deploy/compose.yaml")["services"], line


@pytest.mark.parametrize("words", sorted(set(re.findall(r"(?:exec [\w-]+ |`)penstock ([a-z]+(?: [a-z]+)?)", GUIDE))))
def test_penstock_has_the_command(words: str) -> None:
    known = getattr(get_command(app), "commands")  # noqa: B009 - a group, which its type does not say
    for word in words.split():
        assert word in known, words
        known = getattr(known[word], "commands", {})
