# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Whether our code is right on this machine's GPU: `make gpu-check`, in less than ten minutes.

Tests run without a GPU and fake what they can. What they cannot fake is checked here, each part in
a process of its own, so that a crash or a hang of one is a line of the table. With `--device cpu`,
the parts run that need no GPU; the others are listed as not applicable.
"""
