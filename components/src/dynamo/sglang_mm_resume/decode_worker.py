# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m dynamo.sglang_mm_resume.decode_worker`: the other half of the SGLang engine."""

# SGLang's processes import this module again: it must do nothing for them.
if __name__ == "__main__":
    from dynamo.sglang_mm_resume.workers.run import run, sglang_help
    from dynamo.sglang_mm_resume.workers.start_decode import worker

    run("decode_worker", worker, sglang_help)
