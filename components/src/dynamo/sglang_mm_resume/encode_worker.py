# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m dynamo.sglang_mm_resume.encode_worker`: the vision tower."""

# SGLang's processes import this module again: it must do nothing for them.
if __name__ == "__main__":
    from dynamo.sglang_mm_resume.workers.run import run, sglang_help
    from dynamo.sglang_mm_resume.workers.start_encode import worker

    run("encode_worker", worker, sglang_help)
