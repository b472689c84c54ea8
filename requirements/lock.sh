#!/bin/sh
# Writes the lock files: universal (Python 3.11 to 3.14), with hashes, nothing published within the last week.
set -eu
cutoff=$(python3 -c "import datetime; print(datetime.date.today() - datetime.timedelta(days=7))")
python3 -m venv .cache/uv && .cache/uv/bin/python -m pip install --quiet uv
lock() {
    .cache/uv/bin/uv --no-config pip compile "$@" --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --exclude-newer "$cutoff" --no-header --no-annotate --quiet
}
lock pyproject.toml requirements/build.in --output-file requirements/core.lock
lock pyproject.toml requirements/build.in --group dev --constraint requirements/core.lock --output-file requirements/dev.lock
lock requirements/translator.in --output-file requirements/translator.lock
for clients in requirements/clients*.in; do
    lock "$clients" --output-file "${clients%.in}.lock"
done
lock requirements/prove.in --output-file requirements/prove.lock
lock pyproject.toml requirements/fuzz.in --constraint requirements/core.lock --output-file requirements/fuzz.lock
