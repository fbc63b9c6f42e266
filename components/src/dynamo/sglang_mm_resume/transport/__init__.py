# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Moves bytes and messages; decides nothing. The only folder that knows torch's memory and NIXL."""
