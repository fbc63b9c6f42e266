# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m dynamo.sglang_mm_resume.processor`: the OpenAI front door."""

# SGLang's processes import this module again: it must do nothing for them.
if __name__ == "__main__":
    from dynamo.sglang_mm_resume.workers.run import run
    from dynamo.sglang_mm_resume.workers.start_processor import build_parser, worker

    run("processor", worker, build_parser().print_help)
