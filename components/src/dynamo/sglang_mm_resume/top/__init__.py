# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""All workers of a graph in a terminal: asked (collect), understood (model), drawn (render)."""
