# shellcheck shell=bash
# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
#
# What the launch scripts share: options, an environment for one machine, and processes that are
# stopped together. A script calls `options`, then `start` for each process, then `serve`.

set -euo pipefail
# A process group for each child: Ctrl-C then reaches this script alone, which stops them in order.
set -m

EXAMPLES=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
STOP_DEADLINE_S=40 # over the 30 s that a worker gives to what it has begun

# --- Options ---

HTTP_HOST=127.0.0.1
HTTP_PORT=8000
SYSTEM_PORT=8081
SERVED_NAME=""
EXTRA=()

# By number, for CUDA_VISIBLE_DEVICES; none: everything runs on the CPU.
if [[ -v CUDA_VISIBLE_DEVICES ]]; then
    IFS=, read -ra GPUS <<<"$CUDA_VISIBLE_DEVICES"
else
    shopt -s nullglob
    GPUS=(/dev/nvidia[0-9]*)
    shopt -u nullglob
    GPUS=("${GPUS[@]#/dev/nvidia}")
fi

if ((${#GPUS[@]})); then
    MODEL_PATH=Qwen/Qwen2.5-VL-7B-Instruct
else
    MODEL_PATH=$EXAMPLES/demo_model/weights
fi

usage() {
    sed -n '5,/^$/s/^# \{0,1\}//p' "$0" # the comment at the head of the script
    cat <<HELP

usage: $0 [options] [-- FLAGS]

  --model-path PATH         folder or Hugging Face id (default: $MODEL_PATH)
  --served-model-name NAME  name in the OpenAI API (default: the model path)
  --http-host HOST          address that the frontend listens on (default: $HTTP_HOST)
  --http-port PORT          its port (default: $HTTP_PORT)
  --system-port PORT        /health and /metrics of the processor; every further worker has the
                            next port (default: $SYSTEM_PORT)
  FLAGS                     of SGLang or of this component, for every encode, prefill and decode
                            worker

Without a GPU everything runs on the CPU. CUDA_VISIBLE_DEVICES limits the GPUs that are used. All
settings may come from the environment instead, which every process gets.
HELP
}

fail() {
    echo "error: $1" >&2
    exit 2
}

port() { # FLAG VALUE
    # Dynamo reads DYN_SYSTEM_PORT as a signed number of 16 bits; further ones are counted up.
    [[ $2 =~ ^[0-9]{1,5}$ ]] && (($2 > 0 && $2 <= 32000)) || fail "$1: $2 is no port up to 32000"
    echo "$2"
}

options() {
    while (($#)); do
        case $1 in
            -h | --help) usage && exit 0 ;;
            --) EXTRA=("${@:2}") && break ;;
            --model-path | --served-model-name | --http-host | --http-port | --system-port)
                (($# > 1)) || fail "$1 needs a value (see --help)" ;;&
            --model-path) MODEL_PATH=$2 ;;
            --served-model-name) SERVED_NAME=$2 ;;
            --http-host) HTTP_HOST=$2 ;;
            --http-port) HTTP_PORT=$(port "$1" "$2") ;;
            --system-port) SYSTEM_PORT=$(port "$1" "$2") ;;
            *) fail "unknown option $1 (see --help)" ;;
        esac
        shift 2
    done
    SERVED_NAME=${SERVED_NAME:-$MODEL_PATH}
    MODEL=(--model-path "$MODEL_PATH" --served-model-name "$SERVED_NAME")
    ENGINE=(--dtype bfloat16 --mem-fraction-static 0.8)
    DECODE=()
    if ((!${#GPUS[@]})); then
        on_cpu
    fi
    ENGINE+=("${EXTRA[@]}")
    # Where the ranks of an engine meet. SGLang would choose a port long before it listens there.
    ENGINE_PORT=$((SYSTEM_PORT + 100))
    on_one_machine
}

on_cpu() {
    ENGINE=(
        --device cpu
        --attention-backend torch_native
        --mm-attention-backend sdpa
        --sampling-backend pytorch
        --cuda-graph-backend-decode disabled
        --cuda-graph-backend-prefill disabled
        --disable-overlap-schedule
        --sleep-on-idle
        --max-total-tokens 16384
        --dtype float32
    )
    DECODE=(--disaggregation-decode-retraction-backup cpu_tensor)
    export TORCH_COMPILE_DISABLE=1 OMP_WAIT_POLICY=PASSIVE
}

on_one_machine() {
    SCRATCH=$(mktemp -d -t mm-resume-XXXXXX)
    trap 'rm -rf "$SCRATCH"' EXIT
    # Discovery in a folder, instead of etcd, and loopback only; what is set already stays.
    export DYN_DISCOVERY_BACKEND=${DYN_DISCOVERY_BACKEND:-file}
    export DYN_FILE_KV=${DYN_FILE_KV:-$SCRATCH/discovery}
    export DYN_REQUEST_PLANE=${DYN_REQUEST_PLANE:-tcp}
    export DYN_EVENT_PLANE=${DYN_EVENT_PLANE:-zmq}
    local name
    for name in DYN_EVENT_PLANE_HOST DYN_SYSTEM_HOST DYN_TCP_RPC_HOST \
        DYN_TCP_RESPONSE_STREAM_HOST SGLANG_HOST_IP; do
        export "$name=${!name:-127.0.0.1}"
    done
    # Nobody else routes to these workers: there is no one to wait for before they stop.
    export DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS=${DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS:-0}
    export PYTHONUNBUFFERED=1
    # Without byte code on disk every process compiles thousands of files again, on every start.
    unset PYTHONDONTWRITEBYTECODE DYN_SYSTEM_PORT
    if [[ -d $MODEL_PATH ]]; then
        export HF_HUB_OFFLINE=1
    fi
}

# --- Processes ---

PIDS=()
NAMES=()     # by pid
HEALTH=()    # where each worker says whether it is ready
ANNOUNCER="" # pid of the one that says when all are

start() { # NAME COMMAND...; GPU=N before it: on the N-th GPU, where there are any
    local name=$1 env=()
    shift
    if [[ $name != frontend ]]; then
        env+=("DYN_SYSTEM_PORT=$SYSTEM_PORT")
        HEALTH+=("http://$DYN_SYSTEM_HOST:$SYSTEM_PORT/health")
        ((SYSTEM_PORT += 1, ENGINE_PORT += 1))
    fi
    if [[ -n ${GPU-} ]] && ((${#GPUS[@]})); then
        env+=("CUDA_VISIBLE_DEVICES=${GPUS[GPU % ${#GPUS[@]}]}")
        if ((GPU >= ${#GPUS[@]})); then
            echo "$name shares a GPU: pass -- --mem-fraction-static with what each may take" >&2
        fi
    fi
    echo "$name: ${env[*]} $*"
    if ((!${#PIDS[@]})); then
        trap stop EXIT
        trap 'exit 130' INT
        trap 'exit 143' TERM HUP
    fi
    env "${env[@]}" "$@" </dev/null &
    PIDS+=("$!")
    NAMES[$!]=$name
}

serve() { # until a process ends, or the script is told to
    local ended status=0
    announce &
    ANNOUNCER=$!
    wait -fn -p ended "${PIDS[@]}" || status=$?
    echo "${NAMES[ended]} ended with exit code $status: stopping the others" >&2
    exit $((status ? status : 1))
}

announce() {
    local url=http://$HTTP_HOST:$HTTP_PORT/v1
    # It is listed earlier: with a prefill and a decode worker, before the processor can be reached.
    until curl --silent --fail --fail-early --noproxy '*' "$url/models/$SERVED_NAME/ready" \
        "${HEALTH[@]}" >/dev/null; do
        sleep 1
    done
    echo "ready: $url serves $SERVED_NAME; Ctrl-C stops everything"
}

stop() {
    local pid deadline=$((SECONDS + STOP_DEADLINE_S))
    trap '' INT TERM HUP # once is enough
    if [[ -n $ANNOUNCER ]]; then
        kill -KILL -- "-$ANNOUNCER" 2>/dev/null || true
    fi
    kill -TERM "${PIDS[@]}" 2>/dev/null || true
    for pid in "${PIDS[@]}"; do
        while kill -0 "$pid" 2>/dev/null && ((SECONDS < deadline)); do
            sleep 0.2
        done
        kill -KILL -- "-$pid" 2>/dev/null || true # what is left of it and of its own children
    done
    rm -rf "$SCRATCH"
    echo "all processes are stopped"
}
