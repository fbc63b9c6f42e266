#!/usr/bin/env bash
# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
#
# Ask about a picture with curl alone: a file goes as a data: URL inside the request.
#
# examples/client/curl.sh FILE [BASE_URL [MODEL]]
#
# BASE_URL is http://127.0.0.1:8000/v1 by default, MODEL the first that is served.

set -euo pipefail

if (($# < 1 || $# > 3)) || [[ $1 == -* ]]; then
    sed -n '5,/^$/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
picture=$1
base_url=${2:-http://127.0.0.1:8000/v1}
# {"object":"list","data":[{"id":"NAME", ...
model=${3:-$(curl --silent --fail --show-error "$base_url/models" |
    sed -n 's/^[^[]*\[{"id":"\([^"]*\)".*/\1/p')}

case ${picture,,} in
    *.png) kind=png ;;
    *.webp) kind=webp ;;
    *) kind=jpeg ;;
esac

# Through a pipe: a picture is too long for a command line.
body() {
    printf '{"model": "%s", "max_tokens": 64, "temperature": 0, "messages": [{"role": "user",' "$model"
    printf ' "content": [{"type": "image_url", "image_url": {"url": "data:image/%s;base64,' "$kind"
    base64 --wrap 0 "$picture"
    printf '"}}, {"type": "text", "text": "Describe the picture in detail."}]}]}'
}

# Not --fail: an error says what to change, in its body.
body | curl --silent --show-error --fail-with-body --header 'Content-Type: application/json' \
    --data-binary @- "$base_url/chat/completions"
echo
