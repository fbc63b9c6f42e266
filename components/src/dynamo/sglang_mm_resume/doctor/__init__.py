# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Examines an installation, the machine under it, and a running graph (docs/doctor.md)."""
