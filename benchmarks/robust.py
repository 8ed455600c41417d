"""A million hostile boxes, logits and offsets through every loss of the kit: value and gradient have to be finite.

    python benchmarks/robust.py [--count 1000000] [--seed 1]

The inputs and the losses with their knobs are those of tests/losses/test_robust.py, which runs a tenth of it.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "losses"))
import test_robust as robust

CHUNK = 100_000


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    failed = 0
    modules = [(term, spec, robust.build(term, spec)) for term, spec in robust.SPECS]
    for start in range(0, args.count, CHUNK):
        for term, spec, module in modules:
            pred, target = robust.hostile(term, min(CHUNK, args.count - start), torch.float32, args.seed + start)
            value, gradient = robust.run(module, pred, target)
            bad = int((~torch.isfinite(value)).sum() + (~torch.isfinite(gradient)).sum())
            if bad:
                failed += 1
                print(f"loss_{term} {robust.spec_id(spec)}: {bad} numbers not finite, seed {args.seed + start}")
        robust.hostile.cache_clear()
        print(f"{min(start + CHUNK, args.count):,} of {args.count:,}", flush=True)
    print(f"{len(modules)} losses, {args.count:,} inputs each: {failed} failures")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
