# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.gpu_check`."""

# The processes that check something import this module again: it must do nothing for them.
if __name__ == "__main__":
    import sys

    from benchmarks.gpu_check.command import main

    sys.exit(main(sys.argv[1:]))
