#!/usr/bin/env bash
# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
#
# No encode worker: a graph for text. A picture that comes all the same is encoded by the engine
# itself, and encode workers may join later. GPUs: 1.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options "$@"

start frontend python -m dynamo.sglang_mm_resume.frontend \
    --http-host "$HTTP_HOST" --http-port "$HTTP_PORT"
start processor python -m dynamo.sglang_mm_resume.processor "${MODEL[@]}" --encode-fallback local
GPU=0 start prefill python -m dynamo.sglang_mm_resume.prefill_worker \
    "${MODEL[@]}" "${ENGINE[@]}" --nccl-port "$ENGINE_PORT"
serve
