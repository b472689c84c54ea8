#!/bin/sh
# Writes requirements.lock as requirements/lock.sh does ours: with hashes, nothing published within the last week.
set -eu
cd "$(dirname "$0")/../.."
cutoff=$(python3 -c "import datetime; print(datetime.date.today() - datetime.timedelta(days=7))")
test -x .cache/uv/bin/uv || { python3 -m venv .cache/uv && .cache/uv/bin/python -m pip install --quiet uv; }
.cache/uv/bin/uv --no-config pip compile deploy/vllm/requirements.in --universal --python-version 3.11 \
    --generate-hashes --no-emit-index-url --no-emit-find-links --exclude-newer "$cutoff" --no-header --no-annotate \
    --quiet --output-file deploy/vllm/requirements.lock
