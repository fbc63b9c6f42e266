#!/usr/bin/env bash
# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
#
# Load a graph with random pictures, by SGLang's own serving benchmark.
#
# examples/client/load.sh MODEL_PATH [BASE_URL [MODEL_NAME [FLAGS]]]
#
# MODEL_PATH is the model that is served (a folder or a Hugging Face id): the benchmark counts
# tokens with its processor. BASE_URL is http://127.0.0.1:8000 by default, MODEL_NAME the model
# path. FLAGS go to sglang.benchmark.serving and replace the ones below. Ends with 1 unless all
# requests were answered.

set -euo pipefail

if (($# < 1)) || [[ $1 == -* ]]; then
    sed -n '5,/^$/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
model_path=$1
base_url=${2:-http://127.0.0.1:8000}
model_name=${3:-$model_path}
results=$(mktemp -t mm-resume-load-XXXXXX)
trap 'rm -f "$results"' EXIT

# The name goes into the body: --served-model-name would also be where the benchmark looks for the
# processor.
python -m sglang.benchmark.serving \
    --backend sglang-oai-chat \
    --base-url "${base_url%/v1}" \
    --model "$model_path" \
    --extra-request-body "{\"model\": \"$model_name\"}" \
    --dataset-name image \
    --image-count 1 \
    --image-resolution 448x448 \
    --image-format jpeg \
    --random-input-len 32 \
    --random-output-len 16 \
    --random-range-ratio 1 \
    --num-prompts 64 \
    --max-concurrency 16 \
    --warmup-requests 1 \
    --disable-tqdm \
    --output-file "$results" \
    --output-details \
    "${@:4}"

# The benchmark itself ends with 0 whatever was answered.
python - "$results" <<'CHECK'
import json
import sys

with open(sys.argv[1]) as file:
    result = json.loads(file.readlines()[-1])
errors = [error for error in result["errors"] if error]
if errors:
    sys.exit(f"error: {len(errors)} of {len(result['errors'])} requests failed: {errors[0]:.500}")
CHECK
