# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Decides. Pure: no clock, no I/O, no torch, no Dynamo; standard library and pydantic only."""
