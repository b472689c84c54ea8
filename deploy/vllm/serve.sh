#!/bin/sh
# Starts vLLM the way Penstock expects it: under a name of its own, bounded, behind a key, with cached tokens reported.
#
#   MODEL=/models/llama-3.1-8b SERVED_NAME=llama API_KEY_FILE=/run/secrets/vllm-key sh deploy/vllm/serve.sh
#
# MODEL            a folder that holds the model, or its name on a hub (required)
# SERVED_NAME      what callers of vLLM name it; `upstream_model` in Penstock's declaration      (the last part of MODEL)
# MAX_MODEL_LEN    prompt and answer together, in tokens; `context_tokens` in the declaration    (8192)
# MAX_NUM_SEQS     requests that run at once; what is more waits, and is reported as waiting     (64)
# LORA_MODULES     adapters as NAME=FOLDER, separated by spaces; each NAME is served like a model  (none)
# MAX_LORA_RANK    the highest rank among them                                                   (16)
# TOOL_PARSER      how the model writes tool calls, as vLLM names it: llama3_json, hermes, ...   (none: no automatic tools)
# HOST, PORT       where to listen                                                               (127.0.0.1, 8000)
# API_KEY_FILE     a file that holds the key to ask for; or the key itself in VLLM_API_KEY
#
# Whatever else is given goes to vLLM as it is: sh deploy/vllm/serve.sh --tensor-parallel-size 2
set -eu
: "${MODEL:?names the folder or the hub name of the model to serve}"
host=${HOST:-127.0.0.1}
if [ -n "${API_KEY_FILE:-}" ]; then
    VLLM_API_KEY=$(cat "$API_KEY_FILE")
    export VLLM_API_KEY # and not an argument, which every user of the machine can read
fi
case $host in
127.* | localhost | ::1) ;;
*) : "${VLLM_API_KEY:?or API_KEY_FILE: without a key, nothing but this machine may reach it}" ;;
esac
if [ -n "${LORA_MODULES:-}" ]; then
    # shellcheck disable=SC2086 # several adapters are several words
    set -- --enable-lora --max-lora-rank "${MAX_LORA_RANK:-16}" --lora-modules $LORA_MODULES "$@"
fi
if [ -n "${TOOL_PARSER:-}" ]; then
    set -- --enable-auto-tool-choice --tool-call-parser "$TOOL_PARSER" "$@"
fi
export VLLM_NO_USAGE_STATS="${VLLM_NO_USAGE_STATS:-1}" # it tells its makers nothing, unless you want it to
exec python3 -m vllm.entrypoints.openai.api_server --model "$MODEL" --served-model-name "${SERVED_NAME:-$(basename "$MODEL")}" \
    --host "$host" --port "${PORT:-8000}" --max-model-len "${MAX_MODEL_LEN:-8192}" --max-num-seqs "${MAX_NUM_SEQS:-64}" \
    --enable-prompt-tokens-details --disable-access-log-for-endpoints /health,/metrics "$@"
