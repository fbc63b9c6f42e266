#!/usr/bin/env bash
# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
#
# E/PD: one encode worker, and one prefill worker that decodes as well. GPUs: 2.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options "$@"

start frontend python -m dynamo.sglang_mm_resume.frontend \
    --http-host "$HTTP_HOST" --http-port "$HTTP_PORT"
start processor python -m dynamo.sglang_mm_resume.processor "${MODEL[@]}"
GPU=0 start encode python -m dynamo.sglang_mm_resume.encode_worker "${MODEL[@]}" "${ENGINE[@]}"
GPU=1 start prefill python -m dynamo.sglang_mm_resume.prefill_worker \
    "${MODEL[@]}" "${ENGINE[@]}" --nccl-port "$ENGINE_PORT"
serve
