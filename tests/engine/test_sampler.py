"""The sampler: each row by its own parameters, draws by seed and index alone, penalties as their papers have them."""

from functools import cache

import numpy as np
import pytest

from llmcore.engine.logprobs import LogprobReader
from llmcore.engine.request import Request
from llmcore.engine.sampler import Sampler, penalise, uniform
from llmcore.engine.sampling_params import SamplingParams
from llmcore.plugins import plugins
from llmcore.registry.choose import Preference, Registry

VOCAB = 50


@cache
def pool():
    from llmcore.native.pool import WorkerPool

    return WorkerPool(2)


class Chooser:
    """A sampler over logits that are given to it."""

    def __init__(self, backend, vocab=VOCAB):
        self.logits = np.zeros((8, vocab), np.float32)
        registry = Registry(plugins(), Preference((backend,)))
        self.sampler = Sampler(self.logits, registry, pool)
        self.reader = LogprobReader(self.logits, registry, pool)

    def sample(self, data, requests):
        self.logits[: len(data)] = data
        return self.sampler.sample(requests)

    def read(self, data, requests):
        self.logits[: len(data)] = data
        return self.reader.read(requests)


sampler = Chooser


def request(prompt=(1, 2), generated=(), seed=0, **params):
    made = Request(0, tuple(prompt), SamplingParams(**params), seed)
    made.tokens += generated
    return made


@pytest.fixture(params=["torch", "numba"])
def backend(request):
    return request.param


def logits(rows, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, VOCAB)).astype(np.float32) * 3


def test_rows_follow_their_own_parameters(backend):
    data = logits(4)
    requests = [
        request(),
        request(temperature=1.0, top_k=1, seed=3),
        request(temperature=5.0, min_p=1.0, seed=4),
        request(temperature=1.0, top_p=1e-6, seed=5),
    ]
    assert sampler(backend).sample(data, requests) == data.argmax(-1).tolist()


def test_a_draw_does_not_depend_on_the_batch(backend):
    data = logits(6)
    requests = [request(temperature=1.5, top_k=20, top_p=0.9, seed=i) for i in range(6)]
    chooser = sampler(backend)
    together = chooser.sample(data, requests)
    alone = [chooser.sample(data[i : i + 1], [requests[i]])[0] for i in range(6)]
    mixed = chooser.sample(data, [request(), *requests[1:5], request(temperature=2.0)])
    assert together == alone
    assert mixed[1:5] == together[1:5]


def test_draws_follow_the_distribution(backend):
    data = np.full((8, VOCAB), -20, np.float32)
    data[:, [3, 7]] = np.log([0.25, 0.75])
    chooser = sampler(backend)
    drawn = [
        token
        for i in range(250)
        for token in chooser.sample(data, [request(temperature=1.0, seed=8 * i + j) for j in range(8)])
    ]
    assert set(drawn) == {3, 7}
    assert 0.70 < np.mean(np.array(drawn) == 7) < 0.80  # five sigma of 2,000 draws


def test_temperature_sharpens(backend):
    data = np.zeros((1, VOCAB), np.float32)
    data[0, 9] = 1.0
    cold = [sampler(backend).sample(data, [request(temperature=0.02, seed=s)])[0] for s in range(20)]
    assert cold == [9] * 20


def test_uniform_depends_on_seed_and_index_alone():
    assert uniform(7, 3) == uniform(7, 3)
    assert len({uniform(seed, index) for seed in range(20) for index in range(20)}) > 390
    assert 0 <= uniform(2**63 - 1, 10**6) < 1


def test_uniform_is_philox():
    for seed, index in ((0, 0), (7, 3), (2**63 - 1, 10**6)):
        theirs = np.random.Generator(np.random.Philox(key=seed, counter=[0, index, 0, 0]))
        assert uniform(seed, index) == theirs.random(dtype=np.float32)


def test_penalties():
    row = np.array([2.0, -2.0, 1.0, 0.5], np.float32)
    made = request(prompt=(0, 1), generated=[2, 2], repetition_penalty=2.0)
    penalise(row, made)
    assert row.tolist() == [1.0, -4.0, 0.5, 0.5]  # prompt and answer; negative logits grow
    row = np.array([2.0, -2.0, 1.0, 0.5], np.float32)
    penalise(row, request(prompt=(0, 1), generated=[2, 2, 3], presence_penalty=0.5, frequency_penalty=0.25))
    assert row.tolist() == [2.0, -2.0, 0.0, -0.25]  # the answer alone, by count


def test_requests_that_change_bring_their_parameters(backend):
    data = logits(2)
    chooser = sampler(backend)
    free, narrow = request(temperature=50.0, seed=1), request(temperature=50.0, top_k=1, seed=1)
    best = data.argmax(-1).tolist()
    assert chooser.sample(data, [free, free]) != best
    assert chooser.sample(data, [narrow, request()]) == best
    assert chooser.sample(data, [narrow]) == best[:1]
    assert chooser.sample(data, [free, free]) != best


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3, "logprobs": 2}])
def test_a_row_of_nan_has_no_token(backend, params):
    data = logits(3)
    data[1, 7] = np.nan
    tokens = sampler(backend).sample(data, [request(**params) for _ in range(3)])
    assert tokens[1] == -1 and tokens[0] >= 0 and tokens[2] >= 0


def wanted(row):
    return row.astype(np.float64) - np.log(np.exp(row.astype(np.float64)).sum())


@pytest.mark.parametrize("count", [0, 1, 3, 20, 25, VOCAB])
def test_logprobs_are_of_the_models_own_distribution(backend, count):
    data = logits(2)
    found = sampler(backend).read(data, [request(), request(logprobs=count)]).of(1, 11, count)
    reference = wanted(data[1])
    order = np.argsort(-reference, kind="stable")[:count]
    assert found.token_id == 11
    assert found.logprob == pytest.approx(reference[11], abs=1e-5)
    assert [token for token, _ in found.top] == order.tolist()
    assert [value for _, value in found.top] == pytest.approx(reference[order].tolist(), abs=1e-5)


def test_logprobs_know_nothing_of_penalties(backend):
    data = logits(1)
    chooser, asked = sampler(backend), request(prompt=(3, 4), logprobs=1, repetition_penalty=100.0)
    reading = chooser.read(data, [asked])
    chooser.sampler.sample([asked])
    assert (chooser.logits[0] != data[0]).any(), "the penalty was applied"
    assert reading.of(0, 3, 1).logprob == pytest.approx(wanted(data[0])[3], abs=1e-5)


def test_logprobs_do_not_depend_on_the_batch(backend):
    data = logits(6)
    chooser, asked = sampler(backend), request(logprobs=20)
    together = chooser.read(data, [request(logprobs=1), *[asked] * 5])
    together = [together.of(row, 9, 20) for row in range(1, 6)]
    alone = [chooser.read(data[row : row + 1], [asked]).of(0, 9, 20) for row in range(1, 6)]
    assert together == alone


def test_ties_are_listed_by_index(backend):
    data = np.zeros((1, VOCAB), np.float32)
    data[0, [40, 7]] = 2
    found = sampler(backend).read(data, [request(logprobs=4)]).of(0, 7, 4)
    assert [token for token, _ in found.top] == [7, 40, 0, 1]
