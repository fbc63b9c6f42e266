# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Moves vision embeddings of any length from encode workers to prefill workers.

A plug-in component for NVIDIA Dynamo with SGLang: one block-allocated buffer pool per worker,
registered with NIXL once, a first chunk that needs no round trip, and a resume handshake for the
rest. This module imports nothing; the public names are the module paths.
"""
