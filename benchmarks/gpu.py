"""What a GPU makes of vr1: kernels, decoding, the whole GRPO step, memory, and the same results as on a CPU.

    python benchmarks/gpu.py --out runs/gpu
    python benchmarks/gpu.py --render runs/gpu/results.json --picture runs/gpu/results.png

The first command takes about nine minutes on one GPU of 80 GB or more (``PYTHONPATH=. python benchmarks/gpu.py ...`` in
a checkout that is not installed). It needs torch, transformers, peft and lightning; bitsandbytes and TRL are used where
they are installed. Weights are random, made on the device and never written. Each step has a time budget; a step that
fails or cannot run says why, and the next one goes on. The file ``results.json`` is rewritten atomically after every
measurement, so that nothing is lost whatever happens later. A second run in the same folder goes on: it measures again
whatever takes little time, and of decoding, trainings and the comparison with a CPU what has no result yet. The step
``plan`` needs no GPU. The second command prints the results as Markdown tables and draws some of them.

``--shape tiny --device cpu`` runs the same code in a minute, which is how it is tested.
"""

import argparse
from pathlib import Path

from gpu_steps.picture import draw
from gpu_steps.report import render
from gpu_steps.run import SHAPES, STEPS, Bench, measure

from vr1.commands.allocator import use_expandable_segments


def parser() -> argparse.ArgumentParser:
    """Options of the command line; argparse, since a GPU machine may have nothing but the four libraries."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = options.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="FOLDER", help="measure, and write results.json there")
    what.add_argument("--render", type=Path, metavar="FILE", help="print the results in FILE as a table")
    options.add_argument("--picture", type=Path, metavar="FILE", help="with --render: a picture to write")
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options.add_argument("--shape", choices=SHAPES, default="qwen2.5-vl-7b", help="sizes of the model")
    options.add_argument("--seconds", type=float, default=540, help="time for everything; steps get their shares of it")
    options.add_argument("--only", default="", help="names of the steps to run, with commas; empty for all")
    options.epilog = "steps, most valuable first: " + ", ".join(STEPS)
    return options


def main() -> None:
    """Measure or render."""
    options = parser().parse_args()
    if options.render is not None:
        print(render(options.render))
        if options.picture is not None:
            draw(options.render, options.picture)
        return
    names = [name for name in options.only.split(",") if name]
    if unknown := [name for name in names if name not in STEPS]:
        raise SystemExit(f"gpu: --only {','.join(unknown)}: no such step; there are {', '.join(STEPS)}")
    # As a training does, before torch's first tensor on a GPU.
    use_expandable_segments(None)
    bench = Bench(device=options.device, shape=options.shape, out=options.out)
    bench.load()
    measure(bench, names or list(STEPS), options.seconds)
    print(render(bench.file))


if __name__ == "__main__":
    main()
