# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""SGLang on a machine without an accelerator, through SGLang's own plug-in points.

For tests and demonstrations: the engine runs in pure PyTorch. Where torch sees an accelerator,
nothing in this folder has any effect. It knows nothing of transfers, Dynamo or the rest of us.
"""
