# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m dynamo.sglang_mm_resume.top`: pools, transfers, waits and failures of all workers."""

if __name__ == "__main__":
    import os
    import sys

    # Dynamo reads it when it is imported; what it logs otherwise would spoil the picture.
    os.environ["DYN_LOG"] = "error"

    from dynamo.sglang_mm_resume.top.command import main

    sys.exit(main(sys.argv[1:]))
