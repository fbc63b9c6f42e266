# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m dynamo.sglang_mm_resume`: the worker that `--role` or the environment names."""

# SGLang's processes import this module again: it must do nothing for them.
if __name__ == "__main__":
    from dynamo.sglang_mm_resume.workers.role import run_role

    run_role()
