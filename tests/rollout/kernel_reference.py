"""What the kernels of a decoding step compute: in plain loops and float64, and with torch's operators.

Shape letters: B prompts, P prompt tokens, W slots of a prompt, R rows, H query heads, K key and value heads, E head
width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Case:
    """The arguments of `vr1.rollout.kernels.attention.attend`, under the names that they have there."""

    query: Tensor
    prompt_keys: Tensor
    prompt_values: Tensor
    start: Tensor
    row_of_slot: Tensor
    own: Tensor
    slot_of_row: Tensor
    slot: Tensor
    scaling: float

    @classmethod
    def random(cls, heads, kv_heads, width, length, starts, slots_of_rows, slots, tokens, dtype=torch.float32, size=1):
        """Random keys, values and queries.

        Args:
            heads: H.
            kv_heads: K.
            width: E.
            length: P.
            starts: padding of each prompt.
            slots_of_rows: where each row is stored.
            slots: W.
            tokens: own tokens of each row, the new one included; there is room for a few more, which are not stored.
            dtype: of all.
            size: factor of the scores.
        """
        generator = torch.Generator().manual_seed(0)

        def drawn(*shape):
            return torch.randn(shape, generator=generator).to(dtype)

        prompts, rows = len(starts), len(slots_of_rows)
        row_of_slot = torch.full((prompts * slots,), -1, dtype=torch.int32)
        row_of_slot[torch.tensor(slots_of_rows)] = torch.arange(rows, dtype=torch.int32)
        own = drawn(2, prompts, kv_heads, slots, tokens + 9, width)
        # As large as numbers get: whoever reads them notices.
        own[..., tokens:, :] = 1000
        return cls(
            query=drawn(rows, heads, width),
            prompt_keys=drawn(prompts * kv_heads, length, width),
            prompt_values=drawn(prompts * kv_heads, length, width),
            start=torch.tensor(starts, dtype=torch.int32),
            row_of_slot=row_of_slot,
            own=own,
            slot_of_row=torch.tensor(slots_of_rows, dtype=torch.int32),
            slot=torch.tensor([tokens - 1]),
            scaling=size * width**-0.5,
        )

    def expected(self):
        """``[R, H, E]`` float64: one softmax of one row and head after the other."""
        rows, heads, width = self.query.shape
        kv_heads, slots = self.own.shape[2:4]
        tokens = int(self.slot) + 1
        result = torch.empty(rows, heads, width, dtype=torch.float64)
        for row in range(rows):
            prompt, slot = divmod(int(self.slot_of_row[row]), slots)
            begin = int(self.start[prompt])
            for head in range(heads):
                kv_head = head // (heads // kv_heads)
                pair = prompt * kv_heads + kv_head
                keys, values = (
                    torch.cat([of_prompt[pair, begin:], self.own[kind, prompt, kv_head, slot, :tokens]]).double()
                    for kind, of_prompt in enumerate((self.prompt_keys, self.prompt_values))
                )
                scores = [float(key @ self.query[row, head].double()) * self.scaling for key in keys]
                result[row, head] = torch.tensor(scores, dtype=torch.float64).softmax(0) @ values
        return result


def rotated(part, cosine, sine):
    """Queries or keys ``[R, N, E]`` after rotation in float64; the first half of ``sine`` ``[R, E]`` is negated."""
    result, half = torch.empty(part.shape, dtype=torch.float64), part.shape[2] // 2
    for row, head in ((row, head) for row in range(part.shape[0]) for head in range(part.shape[1])):
        first, second = part[row, head].double().split(half)
        cosines, sines = cosine[row].double().split(half), sine[row].double().split(half)
        result[row, head, :half] = first * cosines[0] + second * sines[0]
        result[row, head, half:] = second * cosines[1] + first * sines[1]
    return result


def rotate_and_store(heads, cosine, sine, own, slot_of_row, slot):
    """With torch's operators what `vr1.rollout.kernels.attention.rotate_and_store` computes, reading nothing on the
    host, so that a graph can repeat it.
    """
    kv_heads, slots = own.shape[2:4]
    qk, values = heads.split([heads.shape[1] - kv_heads, kv_heads], dim=1)
    qk = qk * cosine[:, None] + qk.roll(heads.shape[2] // 2, -1) * sine[:, None]
    keys = qk[:, -kv_heads:]
    prompt, place = slot_of_row // slots, slot_of_row % slots
    for stored, part in zip(own, (keys, values), strict=True):
        by_token = stored.permute(0, 2, 3, 1, 4)
        by_token.index_put_((prompt, place, slot.expand(len(prompt))), part.to(own.dtype))
    return qk[:, :-kv_heads].contiguous()


def attend(query, prompt_keys, prompt_values, start, row_of_slot, own, slot_of_row, slot, scaling):
    """With torch's operators what `vr1.rollout.kernels.attention.attend` computes, reading nothing on the host.

    As there, prompts find their queries by ``row_of_slot``, and rows their results and tokens by ``slot_of_row``.
    """
    prompts, kv_heads, slots, capacity, width = own.shape[1:]
    length, heads = prompt_keys.shape[1], query.shape[1]
    prompt_keys, prompt_values = (
        part.unflatten(0, (prompts, kv_heads)).repeat_interleave(heads // kv_heads, dim=1)
        for part in (prompt_keys, prompt_values)
    )
    by_slot = query[row_of_slot.clamp(min=0)].view(prompts, slots, heads, width)
    to_prompt = torch.einsum("bwhe,bhpe->bwhp", by_slot, prompt_keys)
    to_prompt.masked_fill_((torch.arange(length) < start[:, None])[:, None, None], -torch.inf)
    prompt, place = slot_of_row // slots, slot_of_row % slots
    keys, values = (part[prompt, :, place].repeat_interleave(heads // kv_heads, dim=1) for part in own.to(query.dtype))
    to_own = torch.einsum("rhe,rhce->rhc", query, keys).masked_fill_(torch.arange(capacity) > slot, -torch.inf)
    weights = torch.softmax(torch.cat([to_prompt.flatten(0, 1)[slot_of_row], to_own], -1) * scaling, -1)
    of_prompt, of_own = weights.split([length, capacity], -1)
    result = torch.einsum("rhp,rhpe->rhe", of_prompt, prompt_values[prompt])
    return (result + torch.einsum("rhc,rhce->rhe", of_own, values)).flatten(1)


def rms_norm(states, weight, epsilon):
    """What `vr1.rollout.kernels.layers.rms_norm` computes."""
    return torch.nn.functional.rms_norm(states, weight.shape, weight, epsilon)


def gated(gate, up):
    """What `vr1.rollout.kernels.layers.gated` computes."""
    return torch.nn.functional.silu(gate) * up
