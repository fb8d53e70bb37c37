"""The command ``python -m vr1 plan``: predict the memory of a training."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vr1.errors import report_user_error
from vr1.runs.tables import markdown_table

if TYPE_CHECKING:
    from vr1.commands.plan.needs import Needs
    from vr1.commands.plan.predict import MemoryPlan

_GIB = 2**30
_COLUMNS = ("rollout", "policy", "update", "validation")


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: arguments after ``python -m vr1 plan``: those of ``vr1 fit``, and ``--gpu``.

    Returns:
        The exit status: 0, 1 if the training does not fit, 2 for a user's error, which is printed in one line.
    """
    own, arguments = _parser().parse_known_args(argv)
    # Imported here, so that --help does not wait for torch.
    from vr1.commands.plan.fit import usable
    from vr1.commands.plan.models import known_model
    from vr1.commands.plan.needs import needs_of

    try:
        room = usable(own.gpu) if own.gpu else None
        needs = needs_of(arguments)
        with known_model(needs.policy) as policy:
            if policy is not needs.policy:
                print(f"policy.path={needs.policy.path}: planned from the sizes of this model that vr1 knows")
            return _plan(replace(needs, policy=policy), own.gpu, room)
    except (ValueError, OSError) as error:
        return report_user_error("vr1 plan", error)


def _plan(needs: "Needs", gpu: str | None, room: float | None) -> int:
    """Print the plan, and what to change for a GPU with so much room; returns the exit status."""
    from vr1.commands.plan.fit import capacity, changes, without_four_bits
    from vr1.commands.plan.predict import predict

    memory = capacity(gpu) if gpu else None
    prediction = predict(needs, memory)
    print(table(prediction))
    if needs.group_size > 1:
        print(_rows(prediction, gpu))
    if prediction.dequantized:
        print(_rollout_weights(prediction, room))
    print(
        f"host memory of each machine for weights: {_gib(prediction.host)} GiB of {needs.processes // needs.machines}"
        " processes together, beside about 1 GiB of each for Python and what its data loaders hold\n"
    )
    if room is None:
        return 0
    if prediction.peak <= room:
        print(f"fits: {_gib(prediction.peak)} of the {_gib(room)} GiB that tensors can use on {gpu}")
        if needs.policy.quantize and (peak := predict(without_four_bits(needs), memory).peak) <= room:
            print(
                f"4 bits are not needed on {gpu}: weights in bfloat16 (--model.policy.quantize null) take {_gib(peak)}"
                " GiB and are not converted for every product"
            )
        fixed_vision = needs.policy.freeze_vision or needs.policy.lora is not None
        if needs.policy.gradient_checkpointing and fixed_vision and not needs.sharded:
            print(_recomputation(needs, prediction, room))
        return 0
    print(f"does not fit: {_gib(prediction.peak)} GiB, and tensors can use {_gib(room)} on {gpu}; first change")
    for change, changed in changes(needs):
        peak = predict(changed, memory).peak
        print(f"  {change}: {_gib(peak)} GiB{', fits' if peak <= room else ''}", flush=True)
        if peak <= room:
            return 1
    print("  not enough together: use a smaller model, a larger GPU or more GPUs (configs/fsdp_8xa100.yaml)")
    return 1


def table(prediction: "MemoryPlan") -> str:
    """The parts of a prediction, GiB at each moment of a step, as Markdown."""
    moments, worst = prediction.moments, prediction.worst
    parts = list(dict.fromkeys(part for moment in moments.values() for part in moment))
    counts, columns = prediction.parameters, [name for name in _COLUMNS if name in moments]
    head = ["GiB of each process", *(f"{moment}{' (peak)' * (moment == worst)}" for moment in columns)]
    rows = [[part, *(_gib(moments[moment].get(part, 0.0)) for moment in columns)] for part in parts]
    rows.append(["all", *(_gib(sum(moments[moment].values())) for moment in columns)])
    parameters = f"{counts['all']:,} parameters, {counts['trained']:,} trained"
    return f"{parameters}; rows of up to {prediction.row_tokens:,} tokens\n\n{markdown_table(head, rows)}\n"


def _rows(prediction: "MemoryPlan", gpu: str | None) -> str:
    """How many completions a rollout decodes at the same time."""
    rows, step = prediction.rows
    if rows < step:
        return f"up to {rows} of the {step} completions of a step are sampled at a time"
    return f"all {step} completions of a step are sampled at a time" + ("" if gpu else "; --gpu shows whether they fit")


def _rollout_weights(prediction: "MemoryPlan", room: float | None) -> str:
    """What ``rollout_weights: auto`` will choose."""
    needed = sum(prediction.moments["rollout"].values()) + prediction.dequantized
    numbers = f"{_gib(prediction.dequantized)} GiB, {_gib(needed)} in a rollout"
    if room is None:
        return f"policy.rollout_weights auto: dequantized where there is room for {numbers}"
    choice = "dequantized" if needed <= room else "quantized"
    return f"policy.rollout_weights auto: {choice} (dequantized weights take {numbers}, {_gib(room)} can be used)"


def _recomputation(needs: "Needs", prediction: "MemoryPlan", room: float) -> str:
    """What ``gradient_checkpointing: auto`` does, or would do."""
    from vr1.commands.plan.predict import storing_layers

    storing, layers = storing_layers(needs, prediction, room)
    what = f"{layers - storing} of {layers} layers recompute their activations at the largest sizes, fewer at others"
    if needs.policy.gradient_checkpointing == "auto":
        return f"policy.gradient_checkpointing auto: {what}"
    return f"not all layers have to recompute: with --model.policy.gradient_checkpointing auto, {what}"


def _gib(size: float) -> str:
    return f"{size / _GIB:.2f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vr1 plan",
        allow_abbrev=False,
        description="Predict the memory of a training from the arguments of `vr1 fit`: by part, at the moments of a"
        " step and in validation, and whether it fits. No weights are loaded, and none of the models that vr1's"
        " configurations name are looked up. Images have policy.max_pixels, completions sampling.max_new_tokens: the"
        " most that a run can need.",
        epilog="All other arguments are those of `vr1 fit`: vr1 plan --config FILE --model.sampling.group_size 16",
    )
    parser.add_argument(
        "--gpu", help="the accelerator that it must fit on: a100-40gb, a100-80gb, h100, h200, 24gb, ..."
    )
    return parser
