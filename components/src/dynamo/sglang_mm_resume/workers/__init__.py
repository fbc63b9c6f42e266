# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Meets Dynamo and SGLang: the processor, the encode, prefill and decode workers, the frontend."""
