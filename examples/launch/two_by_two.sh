#!/usr/bin/env bash
# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
#
# Two encode workers and two prefill workers: pictures and requests are shared out, and one of
# either kind may be lost. GPUs: 4.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options "$@"

start frontend python -m dynamo.sglang_mm_resume.frontend \
    --http-host "$HTTP_HOST" --http-port "$HTTP_PORT"
start processor python -m dynamo.sglang_mm_resume.processor "${MODEL[@]}"
for i in 0 1; do
    GPU=$i start "encode-$i" python -m dynamo.sglang_mm_resume.encode_worker \
        "${MODEL[@]}" "${ENGINE[@]}"
done
for i in 0 1; do
    GPU=$((i + 2)) start "prefill-$i" python -m dynamo.sglang_mm_resume.prefill_worker \
        "${MODEL[@]}" "${ENGINE[@]}" --nccl-port "$ENGINE_PORT"
done
serve
