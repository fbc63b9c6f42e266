# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Measures whole graphs over HTTP, ours and Dynamo's own; `make bench-http` runs it."""
