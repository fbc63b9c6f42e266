#!/usr/bin/env bash
# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
#
# E/PD without the block allocator: slots of a fixed size, one grant per picture, no resume. A slot
# holds the longest embedding of the model; eight of them here, as each is large. GPUs: 2.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options "$@"

export SGLANG_USE_BLOCK_ALLOCATOR=false
export SGLANG_EMBEDDING_CACHE_BUFFER_SIZE=${SGLANG_EMBEDDING_CACHE_BUFFER_SIZE:-8}
start frontend python -m dynamo.sglang_mm_resume.frontend \
    --http-host "$HTTP_HOST" --http-port "$HTTP_PORT"
start processor python -m dynamo.sglang_mm_resume.processor "${MODEL[@]}"
GPU=0 start encode python -m dynamo.sglang_mm_resume.encode_worker "${MODEL[@]}" "${ENGINE[@]}"
GPU=1 start prefill python -m dynamo.sglang_mm_resume.prefill_worker \
    "${MODEL[@]}" "${ENGINE[@]}" --nccl-port "$ENGINE_PORT"
serve
