import argparse, sys, tempfile, time, shutil
from collections import Counter
from pathlib import Path
from . import preload


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--scenarios", nargs="*")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", default="")
    a = parser.parse_args()
    if not preload.is_loaded():
        return preload.rerun("benchmarks.faults", sys.argv[1:])
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel
    import matplotlib.pyplot
    from .scenarios import SCENARIOS
    from .every_call import Bench, in_turn

    start = time.monotonic()
    for name in a.scenarios or SCENARIOS:
        folder = a.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        bench = Bench(folder, SCENARIOS[name])
        trials = [t for t in bench.trials() if a.only in str(t)]
        print(name, len(bench.operations), len(trials), flush=True)
        counts = Counter()
        for i, t in enumerate(trials):
            if time.monotonic() - start > a.minutes * 60:
                break
            v = bench.attempt(t)
            counts[v.outcome] += 1
            if v.findings:
                print(t, v.findings, flush=True)
        print(i, counts)


sys.exit(main())
