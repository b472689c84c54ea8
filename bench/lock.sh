#!/bin/sh
# Writes the bench's lock files: universal (Python 3.11 to 3.14), with hashes, nothing published within the last week.
set -eu
cutoff=$(python3 -c "import datetime; print(datetime.date.today() - datetime.timedelta(days=7))")
python3 -m venv .cache/uv && .cache/uv/bin/python -m pip install --quiet uv
for name in requirements peers/litellm peers/tensorzero; do
    .cache/uv/bin/uv --no-config pip compile "bench/$name.in" --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --exclude-newer "$cutoff" --no-header --no-annotate --quiet \
        --output-file "bench/$name.lock"
done
cd bench/peers/portkey && npm install --package-lock-only --ignore-scripts
