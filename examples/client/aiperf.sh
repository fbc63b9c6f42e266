#!/usr/bin/env bash
# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
#
# Load a graph with random pictures, by NVIDIA's aiperf.
#
# examples/client/aiperf.sh TOKENIZER [BASE_URL [MODEL_NAME [FLAGS]]]
#
# TOKENIZER counts the tokens of texts: the folder or Hugging Face id of the model that is served.
# BASE_URL is http://127.0.0.1:8000 by default, MODEL_NAME the tokenizer's. FLAGS go to `aiperf
# profile` in place of the load below; results are written to the folder `artifacts`. aiperf needs
# an environment of its own (`make aiperf` creates .venv-aiperf); AIPERF names another command.

set -euo pipefail

if (($# < 1)) || [[ $1 == -* ]]; then
    sed -n '5,/^$/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
tokenizer=$1
base_url=${2:-http://127.0.0.1:8000}
model_name=${3:-$tokenizer}
own=$(dirname "${BASH_SOURCE[0]}")/../../.venv-aiperf/bin/aiperf
[[ -x $own ]] || own=aiperf

# Where these are set, aiperf looks for the tokenizer among what was downloaded, and for no folder.
[[ ! -d $tokenizer ]] || unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE

load=("${@:4}")
((${#load[@]})) || load=(
    --image-width-mean 448
    --image-height-mean 448
    --synthetic-input-tokens-mean 32
    --output-tokens-mean 16
    --concurrency 16
    --request-count 64
)

"${AIPERF:-$own}" profile \
    --endpoint-type chat \
    --streaming \
    --url "${base_url%/v1}" \
    --model "$model_name" \
    --tokenizer "$tokenizer" \
    --ui none \
    "${load[@]}"
