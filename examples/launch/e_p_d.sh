#!/usr/bin/env bash
# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
#
# E/P/D: one encode worker, one prefill worker, and one decode worker that answers. GPUs: 3.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options "$@"

KV=(--disaggregation-transfer-backend nixl)
start frontend python -m dynamo.sglang_mm_resume.frontend \
    --http-host "$HTTP_HOST" --http-port "$HTTP_PORT"
start processor python -m dynamo.sglang_mm_resume.processor "${MODEL[@]}" --decode-workers
GPU=0 start encode python -m dynamo.sglang_mm_resume.encode_worker "${MODEL[@]}" "${ENGINE[@]}"
GPU=1 start prefill python -m dynamo.sglang_mm_resume.prefill_worker \
    "${MODEL[@]}" "${ENGINE[@]}" "${KV[@]}" --disaggregation-mode prefill \
    --nccl-port "$ENGINE_PORT"
GPU=2 start decode python -m dynamo.sglang_mm_resume.decode_worker \
    "${MODEL[@]}" "${ENGINE[@]}" "${KV[@]}" "${DECODE[@]}" --nccl-port "$ENGINE_PORT"
serve
