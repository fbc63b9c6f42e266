# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m dynamo.sglang_mm_resume.top`: pools, transfers, waits and failures of all workers."""

import sys

from dynamo.sglang_mm_resume.top.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
