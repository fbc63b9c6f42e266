# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m dynamo.sglang_mm_resume.frontend`: Dynamo's frontend, with `Retry-After`."""

# The processes of `--preprocess-workers` import this module again: it must do nothing for them.
if __name__ == "__main__":
    from dynamo.sglang_mm_resume.workers.start_frontend import run

    run()
