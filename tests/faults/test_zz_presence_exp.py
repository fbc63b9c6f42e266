import time, os
from pathlib import Path
import pytest
from tests.support.client import ask, data_url
from tests.support.deployments import FAULTS, MODEL_NAME
from tests.support.pictures import patchwork
from tests.support.worker_status import status_of
DEPLOYMENT = FAULTS
def files(stack):
    d = Path(stack.environment["DYN_FILE_KV"])
    return sorted(f"{p.relative_to(d)}" for p in d.rglob("*") if p.is_file())
def show(tag, stack, t0):
    print(f"{time.monotonic()-t0:.1f} {tag}", len(files(stack)), flush=True)
@pytest.mark.parametrize("name", os.environ.get("EXP", "encode-0 prefill-0 processor").split())
def test_exp(stack, name):
    S = patchwork(800, 4, 4)
    t0 = time.monotonic()
    before = files(stack); print("\n", name, *before, sep="\n  ")
    stack.pause(name)
    seen = before
    until = t0 + 15
    while time.monotonic() < until:
        now = files(stack)
        if now != seen: print(f"{time.monotonic()-t0:.1f} gone", set(seen)-set(now), "new", set(now)-set(seen)); seen = now
        time.sleep(.1)
    a = ask(stack.base_url, MODEL_NAME, [data_url(S)], "What is this?", 8)
    print(f"{time.monotonic()-t0:.1f} while away", a.status, a.error)
    stack.unpause(name); t1 = time.monotonic()
    print("unpaused")
    while time.monotonic() < t1 + 8:
        now = files(stack)
        if now != seen: print(f"{time.monotonic()-t1:.1f} gone", set(seen)-set(now), "new", set(now)-set(seen)); seen = now
        time.sleep(.1)
    print("missing", set(before) - set(seen))
    print(status_of(stack, name)["totals"].get("reregistrations"))
    for i in range(12):
        t = time.monotonic(); a = ask(stack.base_url, MODEL_NAME, [data_url(S)], "What is this?", 8)
        print(f"{time.monotonic()-t1:.1f} after", a.status, a.error, a.token_ids, f"{time.monotonic()-t:.2f}")
    print(status_of(stack, name)["totals"])
