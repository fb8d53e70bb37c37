"""The check of ``vr1 doctor`` for vLLM: whether it is installed, which version, and what it can do here."""

import os
from typing import get_args

from vr1.commands.doctor.checks import CheckResult
from vr1.errors import UserError
from vr1.rollout.vllm.checks import TESTED, InstalledVLLM, engine_device, find_vllm

__all__ = ["check_vllm"]


def check_vllm() -> CheckResult:
    """Check the vLLM of this environment; the default sampler needs none."""
    found = find_vllm()
    if found is None:
        message = "not installed; only model.sampler vr1.rollout.VLLMSampler needs it (docs/how_to/vllm.md)"
        return CheckResult(name="vLLM", message=message)
    name = f"{found.distribution} {found.version}"
    try:
        abilities = _abilities()
    except Exception as error:
        # Any error of its import means the same: the sampler cannot be used.
        reason = (str(error).strip() or "no message").splitlines()[-1]
        message = f"{name} cannot be used: {type(error).__name__}: {reason}"
        return CheckResult(name="vLLM", state="fault", message=message, fix="install it as docs/how_to/vllm.md says")
    return _judged(found, f"{name}; {abilities}")


def _judged(found: InstalledVLLM, message: str) -> CheckResult:
    if found.tested:
        return CheckResult(name="vLLM", message=message)
    fix = f"vr1 was tested with {TESTED}: install such a version, or set model.sampler.untested_version"
    return CheckResult(name="vLLM", state="note", message=message, fix=fix)


def _abilities() -> str:
    """What it can do, as text.

    Raises:
        UserError: it finds no device.
    """
    device = engine_device()
    from vllm.config.lora import MaxLoRARanks

    if not device:
        raise UserError("it finds no device that it was built for")
    invariant = os.environ.get("VLLM_BATCH_INVARIANT") == "1"
    return ", ".join(
        [
            f"on {device}",
            f"adapters up to rank {max(get_args(MaxLoRARanks))}",
            "4-bit bases in 16 bits",
            f"sleep {'no' if device == 'cpu' else 'yes'}",
            f"batch-invariant {'yes' if invariant else 'no (VLLM_BATCH_INVARIANT=1 on an H100 or newer)'}",
        ]
    )
