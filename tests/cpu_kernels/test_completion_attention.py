"""Attention of completions in C, forward and backward, against formulas in float64."""

import pytest
import torch

from vr1.cpu_kernels import completion_attention
from vr1.cpu_kernels.completion_attention import Completions, Inputs, attend, attend_backward, can_attend


class Case:
    """Completions of some prompts with random queries, keys and values."""

    def __init__(self, lengths, prompts, heads=2, kv_heads=1, width=16, scale=1.0):
        generator = torch.Generator().manual_seed(0)
        self.scaling = 1.2 / width**0.5
        self.lengths = torch.tensor(lengths)
        batch, longest, tokens = len(prompts), max(1, int(self.lengths.max())), int(self.lengths.sum())
        self.prompt_mask = torch.arange(max(prompts)) >= max(prompts) - torch.tensor(prompts)[:, None]
        self.mask = torch.arange(longest) < self.lengths[..., None]
        self.row = Completions.of(self.prompt_mask, self.mask)

        def drawn(rows, count, tokens):
            return torch.randn(rows, tokens, count, width, generator=generator).transpose(1, 2) * scale

        self.inputs = Inputs(
            query=drawn(1, heads, tokens),
            prompt_keys=drawn(batch, kv_heads, max(prompts)),
            prompt_values=drawn(batch, kv_heads, max(prompts)),
            keys=drawn(1, kv_heads, tokens),
            values=drawn(1, kv_heads, tokens),
        )
        self.gradient = torch.randn(1, tokens, heads, width, generator=generator)

    def computed(self):
        output, totals = attend(self.inputs, self.row, self.scaling)
        return output, attend_backward(self.gradient, self.inputs, totals, self.row, self.scaling)

    def expected(self):
        """Each completion by itself, with its prompt's tokens before its own."""
        inputs = Inputs(*(part.double().requires_grad_() for part in self.inputs))
        shared = inputs.query.shape[1] // inputs.keys.shape[1]
        results, start = [], 0
        for prompt, group in enumerate(self.lengths.tolist()):
            present = self.prompt_mask[prompt]
            for length in group:
                own = slice(start, start + length)
                keys, values = (
                    torch.cat([of_prompt[prompt, :, present], of_row[0, :, own]], 1).repeat_interleave(shared, 0)
                    for of_prompt, of_row in (
                        (inputs.prompt_keys, inputs.keys),
                        (inputs.prompt_values, inputs.values),
                    )
                )
                scores = inputs.query[0, :, own] @ keys.transpose(1, 2) * self.scaling
                later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1 + int(present.sum()))
                results.append(torch.softmax(scores.masked_fill(later, -torch.inf), -1) @ values)
                start += length
        output = torch.cat(results, 1).transpose(0, 1)[None]
        return output, torch.autograd.grad(output, inputs, self.gradient.double())


def assert_equal(case):
    output, gradients = case.computed()
    expected, of_inputs = case.expected()
    torch.testing.assert_close(output, expected.float(), atol=2e-6, rtol=1e-5)
    for name, ours, theirs in zip(Inputs._fields, gradients, of_inputs, strict=True):
        torch.testing.assert_close(ours, theirs.float(), atol=1e-5, rtol=1e-4, msg=lambda text, name=name: name + text)


# Lengths that end within a vector, a tile, a block of queries and behind several.
@pytest.mark.parametrize("length", [1, 2, 7, 16, 17, 23, 24, 25, 49, 100])
@pytest.mark.parametrize("prompt", [1, 6, 8, 40])
def test_one_completion(threads, length, prompt):
    assert_equal(Case([[length]], [prompt]))


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (6, 2), (7, 1), (14, 2), (64, 1)])
def test_heads_share_keys(threads, heads, kv_heads):
    assert_equal(Case([[5, 9]], [7], heads, kv_heads))


@pytest.mark.parametrize("width", [16, 32, 48, 64, 80, 128, 256])
def test_widths_of_heads(threads, width):
    assert_equal(Case([[20, 3]], [9], 3, 1, width))


def test_prompts_and_completions_of_unequal_length(threads):
    assert_equal(Case([[9, 1, 0, 7], [0, 0, 0, 0], [30, 2, 9, 3]], [5, 12, 1], 6, 2))


def test_no_completion_has_a_token(threads):
    output, gradients = Case([[0, 0]], [3]).computed()
    assert output.shape == (1, 0, 2, 16)
    assert not any(part.any() for part in gradients)


def test_padding_is_not_read(threads):
    case = Case([[4], [3]], [2, 6])
    output, gradients = case.computed()
    for part in (case.inputs.prompt_keys, case.inputs.prompt_values):
        part[0, :, :4] = torch.nan
    again, of_inputs = case.computed()
    assert output.equal(again)
    assert all(one.equal(other) for one, other in zip(gradients, of_inputs, strict=True))
    assert not gradients.prompt_keys[0, :, :4].any()


def test_large_scores_do_not_overflow(threads):
    case = Case([[12, 5]], [7], scale=30.0)
    output, gradients = case.computed()
    torch.testing.assert_close(output, case.expected()[0].float(), atol=1e-3, rtol=1e-4)
    assert all(part.isfinite().all() for part in gradients)


def test_what_is_no_number_stays_so(threads):
    case = Case([[3, 3]], [4], 1, 1)
    case.inputs.values[0, 0, 1] = torch.nan
    output, _ = case.computed()
    # As with torch's attention, it is multiplied by 0 where it is hidden.
    assert output[0, 1:, 0, 0].isnan().tolist() == [True, True, False, False, False]


def test_memory_in_another_order(threads):
    case = Case([[9, 4], [2, 6]], [5, 8], 4, 2)
    output, gradients = case.computed()
    case.inputs = Inputs(*(part.transpose(2, 3).contiguous().transpose(2, 3) for part in case.inputs))
    case.gradient = case.gradient.transpose(1, 3).contiguous().transpose(1, 3)
    again, of_inputs = case.computed()
    assert output.equal(again)
    assert all(one.equal(other) for one, other in zip(gradients, of_inputs, strict=True))


def test_a_gradient_that_is_one_number(threads):
    case = Case([[9, 4]], [5])
    case.gradient = torch.tensor(0.5).expand(case.gradient.shape)
    assert_equal(case)


def test_results_do_not_depend_on_the_number_of_threads():
    case, results, before = Case([[40, 3, 17], [8, 8, 25]], [30, 11], 6, 2), [], torch.get_num_threads()
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        output, gradients = case.computed()
        results.append([output, *gradients])
    torch.set_num_threads(before)
    for others in results[1:]:
        assert all(one.equal(other) for one, other in zip(results[0], others, strict=True))


def test_gradients_lie_as_the_layers_around_read_them():
    gradients = Case([[3, 2]], [4], 4, 2).computed()[1]
    for part in (gradients.query, gradients.keys, gradients.values):
        assert part.transpose(1, 2).is_contiguous()


def test_what_these_functions_cannot_compute(monkeypatch):
    class Kind(torch.Tensor):
        pass

    inputs = Case([[2]], [3]).inputs
    assert can_attend(inputs)
    for other in (inputs.values.double(), inputs.values.bfloat16(), inputs.values.to("meta")):
        assert not can_attend(inputs._replace(values=other))
    assert not can_attend(inputs._replace(prompt_keys=inputs.prompt_keys.as_subclass(Kind)))
    assert not can_attend(Case([[2]], [3], width=24).inputs)
    monkeypatch.setattr(completion_attention, "_functions", lambda: None)
    assert not can_attend(inputs)


def test_shapes_that_do_not_belong_together_are_refused():
    case = Case([[4, 2]], [3])
    short = case.inputs._replace(keys=case.inputs.keys[:, :, 1:])
    with pytest.raises(AssertionError):
        attend(short, case.row, 0.3)
    with pytest.raises(AssertionError):
        attend(case.inputs, Case([[4, 3]], [3]).row, 0.3)
