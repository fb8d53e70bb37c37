"""A decoding step in C against plain formulas in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import silu

from vr1.cpu_kernels import decoding
from vr1.rollout.sampling import Sampling, sample_token


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rows_of(uniform, temperature=1.0, forbidden=(), ends=(-1,)):
    """Rows without any token yet, for uniform numbers ``[R, C]``."""
    count = len(uniform)
    return decoding.Sampled(
        forbidden=torch.tensor(forbidden, dtype=torch.long),
        ends=torch.tensor(ends),
        uniform=uniform,
        count=torch.zeros(1, dtype=torch.long),
        tokens=torch.full(uniform.shape, 77),
        lengths=torch.zeros(count, dtype=torch.long),
        log_probs=torch.full(uniform.shape, 7.0, dtype=torch.float32),
        latest=torch.zeros(count, dtype=torch.long),
        position=torch.arange(count),
        running=torch.ones(count, dtype=torch.bool),
        temperature=temperature,
    )


def sampled(logits, uniform, temperature=1.0):
    """A token for each row of logits ``[R, V]`` by numbers ``[R]``, and its log-prob."""
    rows = rows_of(uniform[:, None].contiguous(), temperature)
    decoding.sample(rows, logits.clone())
    return rows.tokens[:, 0], rows.log_probs[:, 0]


EPSILON = 1e-6


class Model:
    """A layer and a head with random weights, and their formulas in float64."""

    def __init__(
        self,
        heads=1,
        kv_heads=1,
        width=16,
        hidden=40,
        feed_forward=24,
        vocabulary=20,
        biases=(),
        normed=False,
        scale=0.3,
    ):
        self.heads, self.kv_heads, self.width, self.scale = heads, kv_heads, width, scale
        sizes = {
            "qkv": ((heads + 2 * kv_heads) * width, hidden),
            "output": (hidden, heads * width),
            "gate": (feed_forward, hidden),
            "up": (feed_forward, hidden),
            "down": (hidden, feed_forward),
            "head": (vocabulary, hidden),
        }
        self.weights = {
            name: drawn(*size, seed=10 + number) / size[1] ** 0.5 for number, (name, size) in enumerate(sizes.items())
        }
        self.biases = {name: drawn(len(self.weights[name]), seed=20) for name in biases}
        self.norms = {
            name: drawn(hidden, seed=30 + number) for number, name in enumerate(("attention_norm", "mlp_norm", "norm"))
        }
        if normed:
            self.norms |= {"query_norm": drawn(width, seed=40), "key_norm": drawn(width, seed=41)}

    def network(self):
        products = {name: decoding.Product(weight, self.biases.get(name)) for name, weight in self.weights.items()}
        norms = {name: decoding.Norm(weight, EPSILON) for name, weight in self.norms.items()}
        head, norm = products.pop("head"), norms.pop("norm")
        layer = decoding.LayerWeights(**products, **norms, scaling=self.scale)
        return decoding.Network([layer], norm, head, self.heads, self.kv_heads, self.width)

    def continued(self, rows):
        """A prompt of one token, which all rows continue by their first."""
        stored = decoding.StoredTokens(
            prompt_keys=torch.zeros(self.kv_heads, 1, self.width, 16),
            prompt_values=torch.zeros(self.kv_heads, 1, self.width),
            own_keys=torch.zeros(self.kv_heads * rows, 1, self.width, 16),
            own_values=torch.zeros(self.kv_heads * rows, 16, self.width),
        )
        ones = torch.ones(rows, self.width)
        none = torch.zeros(1, dtype=torch.long)
        return [stored], decoding.Rows(
            first_token=none, row_of_slot=torch.arange(rows), slot=0, cosine=ones, sine=ones * 0
        )

    def normed(self, name, x):
        weight = self.norms.get(name)
        return x if weight is None else x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt() * weight.double()

    def product(self, name, x):
        return x @ self.weights[name].double().T + self.biases.get(name, torch.zeros(1)).double()

    def added(self, x):
        """States after the layer, of rows as in `continued`: the prompt's token has the score and the value 0."""
        heads = self.product("qkv", self.normed("attention_norm", x)).view(len(x), -1, self.width)
        query, key, value = heads.split([self.heads, self.kv_heads, self.kv_heads], 1)
        query, key = self.normed("query_norm", query), self.normed("key_norm", key)
        key, value = (part.repeat_interleave(self.heads // self.kv_heads, 1) for part in (key, value))
        weight = torch.sigmoid((query * key).sum(-1, keepdim=True) * self.scale)
        x = x + self.product("output", (weight * value).flatten(1))
        normed = self.normed("mlp_norm", x)
        return x + self.product("down", silu(self.product("gate", normed)) * self.product("up", normed))

    def expected(self, states, keys, values, own_keys, own_values, rows):
        """Logits in float64, and of each row its new keys and values ``[K, E]``.

        ``keys`` and ``values`` are ``[B * K, P, E]``, ``own_keys`` and ``own_values`` ``[B * K * W, tokens, E]``,
        without the new token.
        """
        x = states.double()
        heads = self.product("qkv", self.normed("attention_norm", x)).view(len(x), -1, self.width)
        cosine, sine = rows.cosine.double()[:, None], rows.sine.double()[:, None]

        def rotated(part):
            return part * cosine + part.roll(self.width // 2, -1) * sine

        query, key, value = heads.split([self.heads, self.kv_heads, self.kv_heads], 1)
        query, key = rotated(self.normed("query_norm", query)), rotated(self.normed("key_norm", key))
        slots = len(rows.row_of_slot) // len(rows.first_token)
        attended = torch.zeros_like(query)
        for place, row in enumerate(rows.row_of_slot.tolist()):
            if row < 0:
                continue
            prompt, slot = divmod(place, slots)
            start = rows.first_token[prompt]
            for head in range(self.heads):
                own = head * self.kv_heads // self.heads
                pair = prompt * self.kv_heads + own
                sequence = pair * slots + slot
                seen = torch.cat([keys[pair, start:].double(), own_keys[sequence].double(), key[row, own][None]])
                read = torch.cat([values[pair, start:].double(), own_values[sequence].double(), value[row, own][None]])
                attended[row, head] = torch.softmax(seen @ query[row, head] * self.scale, 0) @ read
        x = x + self.product("output", attended.flatten(1))
        normed = self.normed("mlp_norm", x)
        x = x + self.product("down", silu(self.product("gate", normed)) * self.product("up", normed))
        return self.product("head", self.normed("norm", x)), key, value


@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (16, 16), (17, 15), (40, 300), (7, 1000)])
@pytest.mark.parametrize("rows", [1, 8, 16, 17, 33])
def test_products(threads, outputs, inputs, rows):
    """The head of a model whose layer adds nothing, so that its states are the embeddings."""
    head, states = drawn(outputs, inputs, seed=1), drawn(rows, inputs)
    model = Model(hidden=inputs, vocabulary=outputs, feed_forward=3)
    model.weights["head"], model.biases["head"] = head, drawn(outputs, seed=2)
    model.weights["output"] *= 0
    model.weights["down"] *= 0
    found = model.network().step(states, *model.continued(rows))
    wide = states.double()
    normed = wide / (wide.square().mean(-1, keepdim=True) + EPSILON).sqrt() * model.norms["norm"].double()
    expected = normed @ head.double().T + model.biases["head"].double()
    torch.testing.assert_close(found.double(), expected, atol=2e-6 * inputs**0.5, rtol=2e-6)


def test_rounding_does_not_grow_with_the_inputs():
    """A sum of 100,000 equal numbers, one after another, would be off by 4e-4 of itself."""
    size = 100_000
    row, expected = torch.full((1, size), 0.1), size * float(torch.tensor(0.1))
    assert abs(np.cumsum(row[0].numpy())[-1] / expected - 1) > 1e-4
    norm = decoding.Norm(torch.ones(size), 0.0)
    layer = decoding.LayerWeights(
        attention_norm=norm,
        qkv=decoding.Product(torch.zeros(48, size)),
        output=decoding.Product(torch.zeros(size, 16)),
        mlp_norm=norm,
        gate=decoding.Product(torch.zeros(1, size)),
        up=decoding.Product(torch.zeros(1, size)),
        down=decoding.Product(torch.zeros(size, 1)),
        scaling=1.0,
    )
    network = decoding.Network([layer], norm, decoding.Product(row), 1, 1, 16)
    found = network.step(torch.ones(1, size), *Model().continued(1))
    assert abs(float(found) / expected - 1) < 1e-5


ALL = ("qkv", "output", "gate", "up", "down", "head")
# Query heads, key heads, width, prompt tokens, padding of each prompt, rows of the slots, own tokens before, and sizes.
CASES = {
    "groups": (6, 2, 64, 37, [0, 5], [0, 1, 2, 3, -1, 4], 20, {"biases": ["qkv"]}),
    "a whole block of keys": (4, 4, 16, 32, [0, 16], [0, 1], 15, {"normed": True}),
    "seven queries to a key": (7, 1, 48, 5, [4], list(range(9)), 0, {"biases": ALL, "hidden": 33, "feed_forward": 17}),
    "many slots": (2, 1, 32, 100, [99, 1], [*range(40), *range(40, 60), *[-1] * 20], 31, {"vocabulary": 301}),
    "large scores": (4, 2, 16, 40, [3], [1, 0], 9, {"scale": 90.0}),
    "wide heads": (5, 5, 128, 17, [0, 1, 2], [2, -1, 0, -1, 1, -1], 3, {"normed": True, "feed_forward": 500}),
}


def in_blocks(keys):
    """``[N, tokens, E]`` as blocks of 16 tokens, anything behind the last."""
    full = torch.full((len(keys), -(-keys.shape[1] // 16) * 16, keys.shape[2]), torch.nan)
    full[:, : keys.shape[1]] = keys
    return full.unflatten(1, (-1, 16)).transpose(2, 3).contiguous()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_step(threads, case):
    heads, kv_heads, width, length, starts, row_of_slot, before, settings = case
    model = Model(heads, kv_heads, width, **settings)
    prompts, count, slots = len(starts), max(row_of_slot) + 1, len(row_of_slot) // len(starts)
    sequences, capacity = prompts * kv_heads * slots, -(-(before + 1) // 16) * 16
    states = drawn(count, len(model.norms["norm"]))
    rows = decoding.Rows(
        first_token=torch.tensor(starts),
        row_of_slot=torch.tensor(row_of_slot),
        slot=before,
        cosine=drawn(count, width, seed=1),
        sine=drawn(count, width, seed=2),
    )
    keys, values = (drawn(prompts * kv_heads, length, width, seed=seed) for seed in (3, 4))
    # What is padding, or is not stored yet, may be anything.
    for pair in range(prompts * kv_heads):
        keys[pair, : starts[pair // kv_heads]] = values[pair, : starts[pair // kv_heads]] = torch.nan
    own_keys, own_values = torch.full((2, sequences, capacity, width), torch.nan)
    own_keys[:, :before], own_values[:, :before] = (drawn(sequences, before, width, seed=seed) for seed in (5, 6))
    stored = decoding.StoredTokens(
        prompt_keys=in_blocks(keys), prompt_values=values, own_keys=in_blocks(own_keys), own_values=own_values.clone()
    )
    expected, key, value = model.expected(states, keys, values, own_keys[:, :before], own_values[:, :before], rows)
    found = model.network().step(states, [stored], rows)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-4)
    stored_keys = stored.own_keys.transpose(2, 3).flatten(1, 2)
    for sequence in range(sequences):
        pair, slot = divmod(sequence, slots)
        prompt, head = divmod(pair, kv_heads)
        row = row_of_slot[prompt * slots + slot]
        assert stored_keys[sequence, before + 1 :].isnan().all()
        if row < 0:
            assert stored_keys[sequence, before:].isnan().all()
            continue
        torch.testing.assert_close(stored_keys[sequence, before].double(), key[row, head], atol=1e-5, rtol=1e-5)
        found_value = stored.own_values[sequence, before].double()
        torch.testing.assert_close(found_value, value[row, head], atol=1e-5, rtol=1e-5)


def test_results_do_not_depend_on_the_threads_nor_on_the_other_rows():
    model, states = Model(6, 2, 16, normed=True), drawn(40, 40)
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(model.network().step(states, *model.continued(40)))
    torch.set_num_threads(1)
    alone = model.network().step(states[:7].contiguous(), *model.continued(7))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[0][:7], alone)


def test_several_layers_and_steps_of_other_sizes():
    """Each layer has its own weights and cache; memory of an earlier step is used again."""
    one, other = Model(2, 1, 16), Model(2, 1, 16, biases=ALL)
    norm, head = decoding.Norm(one.norms["norm"], EPSILON), decoding.Product(one.weights["head"])

    def layer(model):
        return model.network()._kept[0][0]

    both = decoding.Network([layer(one), layer(other)], norm, head, 2, 1, 16)
    for count in (20, 3, 33):
        states = drawn(count, 40, seed=count)
        stored, rows = one.continued(count)
        found = both.step(states, [*stored, *one.continued(count)[0]], rows)
        expected = one.product("head", one.normed("norm", other.added(one.added(states.double()))))
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_extreme_values():
    """Of a NaN, only its row is affected; gates far from 0 are 0 or the identity."""
    model, states = Model(1, 1, 16), drawn(5, 40)
    expected = model.network().step(states, *model.continued(5))
    states[1, 3] = torch.nan
    found = model.network().step(states, *model.continued(5))
    assert found.isnan().any(1).tolist() == [False, True, False, False, False]
    assert torch.equal(found[2:], expected[2:])
    model.biases["gate"] = torch.tensor([-1e30, -1000.0, -88.5, -87.5, -50.0, 0.0, 50.0, 1000.0] * 3)
    model.weights["gate"] *= 0
    states = drawn(5, 40)
    expected = model.product("head", model.normed("norm", model.added(states.double())))
    found = model.network().step(states, *model.continued(5))
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_results_have_the_precision_of_the_inputs_whatever_the_default():
    """A trainer may set another default, in which a buffer would be too small."""
    model, states, uniform = Model(2, 1, 16), drawn(2, 40), torch.full((2,), 0.3, dtype=torch.float64)

    inputs = [model.continued(2) for _ in range(2)]

    def results():
        logits = model.network().step(states, *inputs.pop())
        return [logits, *sampled(logits, uniform)]

    expected = results()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = results()
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("fault", ["layout", "precision", "slot"])
def test_what_it_would_read_in_a_wrong_place_is_refused(fault):
    model, states = Model(), drawn(2, 40)
    stored, rows = model.continued(2)
    if fault == "layout":
        states = drawn(40, 2).T
    elif fault == "precision":
        rows = replace(rows, sine=rows.sine.double())
    else:
        rows = replace(rows, slot=16)
    with pytest.raises(AssertionError):
        model.network().step(states, stored, rows)


@pytest.mark.parametrize("size", [1, 7, 256, 257, 4099])
@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_tokens_are_those_of_torch(threads, size, temperature):
    logits = drawn(300, size) * 3
    logits[:, drawn(size, seed=1) > 1] = -torch.inf
    logits[:, size // 2] = 0
    uniform = torch.rand(300, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = sample_token(logits, Sampling(temperature=temperature), uniform)
    found = sampled(logits, uniform, temperature)
    # Where a number is within rounding of the boundary of two tokens, either is right.
    assert (found[0] != expected[0]).sum() <= (1 if size > 1000 else 0)
    same = found[0] == expected[0]
    torch.testing.assert_close(found[1][same], expected[1][same], atol=1e-5, rtol=1e-5)


def test_tokens_at_the_ends_of_the_distribution():
    logits = torch.full((4, 600), -torch.inf)
    logits[:, 100], logits[:, 400] = 0, 0
    logits[2, 400] = -200
    logits[3, 100] = -200
    first, last = torch.zeros(4).double(), torch.full((4,), 1 - 2**-53).double()
    assert sampled(logits, first)[0].tolist() == [100, 100, 100, 400]
    tokens, log_probs = sampled(logits, last)
    assert tokens.tolist() == [400, 400, 100, 400]
    torch.testing.assert_close(log_probs.exp(), torch.tensor([0.5, 0.5, 1, 1]))


def test_logits_without_a_distribution():
    logits = drawn(5, 20)
    logits[1, 5], logits[2, 17], logits[3], logits[4, 3] = torch.nan, torch.nan, -torch.inf, torch.inf
    tokens, log_probs = sampled(logits, torch.full((5,), 0.5).double())
    assert tokens[1:].tolist() == [0, 0, 0, 0]
    assert log_probs.isnan().tolist() == [False, True, True, True, True]


def test_frequencies_are_the_probabilities():
    logits = drawn(1, 300) * 2
    uniform = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    tokens, _ = sampled(logits.expand(100_000, -1), uniform, 0.7)
    counts = torch.bincount(tokens, minlength=300) / 100_000
    assert (counts - torch.softmax(logits[0].double() / 0.7, 0)).abs().max() < 2e-5


def test_rows_go_on_until_they_end(threads):
    """Row 0 ends at once, row 1 with its second token; a forbidden token has all the weight of another row."""
    logits = torch.full((3, 3, 300), -torch.inf)
    for step, tokens in enumerate([(20, 5, 6), (8, 21, 9), (4, 4, 4)]):
        for row, token in enumerate(tokens):
            logits[step, row, token] = 1.5
    logits[1, 2, 11], logits[1, 2, 12], logits[2, 1, 9] = 1.5, 50.0, 1.5
    rows = rows_of(torch.full((3, 3), 0.7).double(), forbidden=(12, 13), ends=(20, 21))
    states = []
    for own in logits:
        decoding.sample(rows, own.contiguous())
        states.append((rows.latest.tolist(), rows.running.tolist(), rows.lengths.tolist(), rows.position.tolist()))
    assert states == [
        ([20, 5, 6], [False, True, True], [1, 1, 1], [1, 2, 3]),
        ([8, 21, 11], [False, False, True], [1, 2, 2], [2, 3, 4]),
        ([4, 9, 4], [False, False, True], [1, 2, 3], [3, 4, 5]),
    ]
    assert rows.tokens.tolist() == [[20, 20, 20], [5, 21, 20], [6, 11, 4]]
    torch.testing.assert_close(rows.log_probs.exp(), torch.tensor([[1.0, 1, 1], [1, 1, 1], [1, 0.5, 1]]))
    assert rows.count.tolist() == [3]


def test_forbidden_tokens_outside_the_vocabulary_change_nothing():
    logits = torch.zeros(2, 3, 20)
    rows = rows_of(torch.full((3, 1), 0.99).double(), forbidden=(-1, 20, 10**9))
    decoding.sample(rows, logits[0])
    assert not logits.any()
    assert rows.tokens.tolist() == [[19]] * 3


@pytest.mark.parametrize("fault", ["layout", "precision", "numbers", "shape"])
def test_rows_that_it_would_read_in_a_wrong_place_are_refused(fault):
    rows, logits = rows_of(torch.zeros(4, 2).double()), drawn(4, 20)
    if fault == "layout":
        rows = replace(rows, tokens=rows.tokens.T.contiguous().T)
    elif fault == "precision":
        logits = logits.double()
    elif fault == "numbers":
        rows = replace(rows, latest=rows.latest.int())
    else:
        rows = replace(rows, uniform=torch.zeros(4, 3).double())
    with pytest.raises(AssertionError):
        decoding.sample(rows, logits)
