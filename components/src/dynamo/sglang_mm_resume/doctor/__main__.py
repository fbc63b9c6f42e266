# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m dynamo.sglang_mm_resume.doctor`: what is wrong here, and what to do about it."""

# The processes that try out transports import this module again: it must do nothing for them.
if __name__ == "__main__":
    import os
    import sys

    # Inside a worker's container, the port is that worker's.
    os.environ.pop("DYN_SYSTEM_PORT", None)

    try:
        from dynamo.sglang_mm_resume.doctor.examination import main
    except ImportError as error:
        print(f"error: this installation is not complete: {error}", file=sys.stderr)
        print('-> pip install "ai-dynamo[sglang]" dynamo-sglang-mm-resume', file=sys.stderr)
        sys.exit(2)

    sys.exit(main(sys.argv[1:]))
