"""What a training calls, tried for real: compiled operators, 4-bit weights, a model's answer."""

import time
from collections.abc import Callable

import torch

from vr1.doctor.observation import Observation


def try_operators() -> str:
    """Compiled operators of torchvision fit this torch."""
    from torchvision.ops import nms

    kept = nms(torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 8.0]]), torch.tensor([0.5, 0.9]), 0.5)
    if kept.tolist() != [1]:
        raise RuntimeError(f"non-maximum suppression kept {kept.tolist()} where it had to keep [1]")
    return "compiled operators work"


def try_four_bits() -> str:
    """A matrix is held in 4 bits by bitsandbytes and multiplied by, on the GPU where there is one."""
    from bitsandbytes.nn import Linear4bit

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    plain = torch.nn.Linear(256, 256, bias=False)
    plain.weight.data = torch.randn(256, 256, generator=generator)
    packed = Linear4bit(256, 256, bias=False, compute_dtype=torch.float32, quant_type="nf4", quant_storage=torch.uint8)
    packed.load_state_dict(plain.state_dict())
    packed = packed.to(device)
    rows = torch.randn(8, 256, generator=generator)
    with torch.no_grad():
        expected, found = plain(rows), packed(rows.to(device)).float().cpu()
    error = float((found - expected).norm() / expected.norm())
    # 4 bits of a normal distribution are off by 0.1; anything else is no rounding.
    if not error < 0.2:
        raise RuntimeError(f"a product with 4-bit weights is off by {error:.2f} of its size")
    return f"4-bit product on {device}, off by {error:.2f} of its size as 4 bits are"


def try_embedded_model() -> str:
    """The embedded model loads, sees a scene and answers."""
    from vr1.data.scenes import SceneSource
    from vr1.policy.loading import PolicySource
    from vr1.prompts import PromptEncoder
    from vr1.rollout.generate import generate
    from vr1.rollout.settings import Sampling

    started = time.perf_counter()
    source = PolicySource()
    policy, processor, family = source.load().eval(), source.processor(), source.family()
    prompts = PromptEncoder(processor, family, 1024)([SceneSource(length=1, split="val")[0]])
    sampling = Sampling(group_size=1, temperature=0.0, max_new_tokens=128)
    answer = generate(policy, prompts, sampling, processor.tokenizer).texts[0][0]
    boxes = len(family.read(answer).boxes)
    return f"loads and answers with {boxes} box{'' if boxes == 1 else 'es'} in {time.perf_counter() - started:.1f} s"


TRIALS: dict[str, tuple[Callable[[], str], str]] = {
    "torchvision": (try_operators, "install the torchvision that belongs to this torch"),
    "bitsandbytes": (try_four_bits, "--model.policy.quantize will not work here; reinstall bitsandbytes for this CUDA"),
    "embedded model": (try_embedded_model, "no model will work here before this one does"),
}
"""What is tried, by the thing that it tells of: the trial, and what its failure means."""


def observe_trials(trials: dict[str, tuple[Callable[[], str], str]] = TRIALS) -> list[Observation]:
    """Try everything; a failure of whatever kind is told with its last line.

    Example:
        >>> observe_trials({"nothing": (lambda: str(1 / 0), "learn to divide")})[0].told
        'ZeroDivisionError: division by zero'
    """
    found = []
    for what, (attempt, mend) in trials.items():
        try:
            found.append(Observation(what=what, told=attempt()))
        except Exception as error:
            told = f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[-1]}"
            found.append(Observation(what=what, told=told, state="fault", mend=mend))
    return found
