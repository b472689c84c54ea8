"""`python -m tests.fuzz sse -runs=100000`: a target under atheris, in the environment of requirements/fuzz.lock.

What follows the name is libFuzzer's. `--keep FOLDER` instead adds a folder's inputs to the committed corpus.
"""

import sys
from pathlib import Path

import atheris

from tests.fuzz.corpora import add

with atheris.instrument_imports(include=["gateway", "router", "governance", "cost", "kernel"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz, or keep what was found."""
    name, *options = sys.argv[1:]
    if options[:1] == ["--keep"]:
        print(add(name, (path.read_bytes() for path in Path(options[1]).iterdir())))
        return
    words = Path(f"{name}.dict")
    quoted = ("".join(f"\\x{byte:02x}" for byte in word) for word in TARGETS[name].words)
    words.write_text("".join(f'"{word}"\n' for word in quoted))
    atheris.Setup([sys.argv[0], f"-dict={words}", *options], TARGETS[name].check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
