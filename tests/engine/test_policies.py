"""Policies: each lets in whom it says, nobody waits for ever, and a plugin's own works like ours."""

from importlib.metadata import EntryPoint
from types import ModuleType

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmcore import LLM, EngineSettings, SamplingParams, plugins
from llmcore.cache.pages import PagePool
from llmcore.cache.prefix import PrefixIndex
from llmcore.engine.policies import Fcfs, Policy, PolicyWarning, Priority, Shortest
from llmcore.engine.request import Request
from llmcore.engine.scheduler import Scheduler
from llmcore.errors import PluginError, RequestError
from llmcore.hookspecs import PolicyInfo, hookimpl


def request(i, prompt=4, answer=1, priority=0):
    return Request(i, tuple(range(prompt)), SamplingParams(max_tokens=answer), seed=0, priority=priority)


def scheduler(policy, pages=20, max_seqs=1, max_tokens=64):
    return Scheduler(PagePool(pages), 4, max_seqs, max_tokens, 32, policy)


def run(schedule, requests, at_once=True):
    """The order in which requests are let in for the first time; they come at once, or one before each step."""
    order, coming = [], list(requests)
    while coming or schedule.busy:
        for _ in range(len(coming) if at_once else min(1, len(coming))):
            schedule.add(coming.pop(0))
        for running, count, complete in schedule.schedule():
            if running.id not in order:
                order.append(running.id)
            running.computed += count
            schedule.keep(running)
            if complete:
                running.tokens.append(7)
                if running.generated_count == running.params.max_tokens:
                    running.finish_reason = "length"
                    schedule.finish(running)
        schedule.verify()
    return order


def test_first_come_first_served():
    assert run(scheduler(Fcfs()), [request(i, priority=-i, answer=9 - i) for i in range(5)]) == [0, 1, 2, 3, 4]


def test_the_smallest_priority_first_and_equals_as_they_came():
    ranks = [3, 1, 2, 1, -5]
    assert run(scheduler(Priority()), [request(i, priority=p) for i, p in enumerate(ranks)]) == [4, 1, 3, 2, 0]


def test_the_shortest_answer_first():
    assert run(scheduler(Shortest()), [request(i, answer=n) for i, n in enumerate([5, 9, 2, 5, 1])]) == [4, 2, 0, 3, 1]


def test_answers_without_a_limit_are_as_long_as_those_before():
    policy = Shortest()
    unknown, short, long = request(0, answer=None), request(1, answer=6), request(2, answer=14)
    assert policy.remaining(unknown) == 128
    for length in (8, 12):
        done = request(9, answer=None)
        done.tokens += [7] * length
        policy.finished(done)
    assert policy.remaining(unknown) == 10
    assert sorted([long, unknown, short], key=policy.key) == [short, unknown, long]
    unknown.tokens += [7] * 30
    assert policy.remaining(unknown) == 1


def test_room_is_kept_for_the_answers_that_are_likely():
    """Two answers of five pages each do not fit nine pages: the second waits, in place of being preempted."""
    for policy, together in ((Shortest(), 1), (Fcfs(), 2)):
        schedule = scheduler(policy, pages=9, max_seqs=2)
        requests = [request(i, prompt=4, answer=13) for i in range(2)]
        for each in requests:
            schedule.add(each)
        schedule.schedule()
        assert len(schedule.running) == together
    lonely = scheduler(Shortest(), pages=8)
    lonely.add(request(0, prompt=4, answer=1000))
    assert lonely.schedule()


@pytest.mark.parametrize("policy", [Priority, Shortest])
def test_nobody_starves(policy):
    """Against a stream of requests that all go first, the one that waits is let in after ``patience`` of them."""
    made = policy()
    made.patience = 5
    others = [request(i, answer=2, priority=-1) for i in range(1, 20)]
    victim = request(0, answer=3, priority=1)
    order = run(scheduler(made), [others[0], victim, *others[1:]], at_once=False)
    assert order.index(0) <= 6


@settings(deadline=None)
@example([(5, 1, 0), (5, 1, 0), (1, 1, 0), (1, 1, 0)], Fcfs, 1, 8, 3, True)  # the second waits for the first one's page
@given(
    st.lists(st.tuples(st.integers(1, 16), st.integers(1, 9), st.integers(-3, 3)), min_size=1, max_size=14),
    st.sampled_from([Fcfs, Priority, Shortest]),
    st.integers(0, 3),
    st.integers(8, 16),
    st.integers(1, 3),
    st.booleans(),
)
def test_the_bound_holds_and_everybody_is_served(shapes, kind, patience, pages, seqs, at_once):
    policy = kind()
    policy.patience = patience
    requests = [request(i, *shape) for i, shape in enumerate(shapes)]
    schedule = Scheduler(PagePool(pages, PrefixIndex(4)), 4, seqs, 9, 32, policy)
    assert sorted(run(schedule, requests, at_once)) == list(range(len(shapes)))
    assert max(each.overtaken for each in requests) <= patience
    assert schedule.pool.free == pages and not schedule._coming


def test_the_least_important_gives_its_pages_back():
    """Of those that run, whatever their order of arrival; among equals the latest."""
    for priorities, victims in (([5, 0, 1], [0, 2]), ([1, 1, 1], [2, 1]), ([0, 5, 5], [2, 1])):
        schedule = scheduler(Priority(), pages=8, max_seqs=3)
        requests = [request(i, prompt=8, answer=20, priority=p) for i, p in enumerate(priorities)]
        for each in requests:
            schedule.add(each)
        gave_back = []
        while schedule.preemptions < 2:
            before = list(schedule.running)
            for running, count, complete in schedule.schedule():
                running.computed += count
                running.tokens += [7] * complete
            gave_back += [each.id for each in reversed(before) if each not in schedule.running]
            schedule.max_seqs = len(schedule.running)
            schedule.verify()
        assert gave_back == victims


def test_who_was_overtaken_too_often_is_not_preempted():
    policy = Priority()
    starved = request(3, priority=9)
    starved.overtaken = policy.patience
    assert sorted([request(0, priority=-5), starved, request(1)], key=policy.standing)[0] is starved


class Unspeakable(Exception):
    """Cannot be told either."""

    def __str__(self):
        raise RuntimeError("nor this")


class Broken(Policy):
    """Fails in one way."""

    uses_priority = True

    def __init__(self, method, answer):
        def fail(*_):
            if isinstance(answer, Exception):
                raise answer
            return answer

        if method == "patience":
            self.patience = answer
        else:
            setattr(self, method, fail)
        self.reserves = method == "remaining"


def test_what_is_no_policy_is_replaced_too():
    schedule = scheduler(object())
    with pytest.warns(PolicyWarning, match="the policy object has failed"):
        assert run(schedule, [request(i) for i in range(3)]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("choose", ZeroDivisionError("theirs")),
        ("choose", Unspeakable()),
        ("choose", None),
        ("choose", request(99)),
        ("key", KeyError("theirs")),
        ("standing", RuntimeError("theirs")),
        ("standing", object()),
        ("remaining", ValueError("theirs")),
        ("remaining", "many"),
        ("finished", TypeError("theirs")),
        ("patience", None),
    ],
)
def test_a_policy_that_fails_is_replaced(method, answer):
    """With one warning; everybody is served, in the order in which they came from then on."""
    schedule = scheduler(Broken(method, answer), pages=16, max_seqs=2)
    with pytest.warns(PolicyWarning, match="the policy Broken has failed") as said:
        order = run(schedule, [request(i, answer=3) for i in range(6)])
    assert len(said) == 1
    assert order == list(range(6))
    assert type(schedule.policy.inner) is Fcfs and schedule.pool.free == 16


def test_a_policy_may_take_its_own_list_apart():
    policy = Policy()
    policy.choose = lambda waiting: [waiting.pop(0), waiting.clear()][0]
    policy.patience = float("inf")
    assert run(scheduler(policy), [request(i) for i in range(5)]) == list(range(5))


def test_an_unknown_policy_names_the_near_ones(tmp_path):
    with pytest.raises(PluginError, match="no policy 'priorty'") as caught:
        LLM(str(tmp_path), engine=EngineSettings(policy="priorty"))
    assert "did you mean 'priority'?" in caught.value.remedy


def test_a_plugin_s_policy(monkeypatch, tiny_model):
    class Latest(Policy):
        def key(self, request):
            return -request.id

    module = ModuleType("llmcore_test_latest")
    module.Latest = Latest
    module.llmcore_policies = hookimpl(lambda: [PolicyInfo("latest", "the latest first", "llmcore_test_latest:Latest")])
    monkeypatch.setitem(__import__("sys").modules, module.__name__, module)
    theirs = plugins.load([EntryPoint("latest", module.__name__, "llmcore")])
    assert theirs.policy("latest").summary == "the latest first"
    monkeypatch.setitem(plugins.plugins().policies, "latest", theirs.policies["latest"])
    sizes = EngineSettings(max_seqs=1, max_context=32, policy="latest")
    llm = LLM(str(tiny_model("llama3").path), engine=sizes, threads=1)
    requests = [llm.engine.add([1 + i], SamplingParams(max_tokens=1)) for i in range(3)]
    done = []
    while llm.engine.busy:
        llm.engine.step()
        done += [each.id for each in requests if each.finish_reason and each.id not in done]
    assert done == [2, 1, 0]
    llm.close()


def test_a_policy_that_cannot_be_made(monkeypatch, tiny_model):
    theirs = PolicyInfo("broken", "none", "helpers.tiny:make_tiny")  # it wants arguments
    monkeypatch.setitem(plugins.plugins().policies, "broken", theirs)
    with pytest.raises(PluginError, match=r"engine\.policy=broken: helpers\.tiny:make_tiny failed with TypeError"):
        LLM(str(tiny_model("llama3").path), engine=EngineSettings(policy="broken"))


def test_priorities_go_through_the_engine(tiny_model):
    sizes = EngineSettings(max_seqs=1, max_context=32, policy="priority")
    llm = LLM(str(tiny_model("llama3").path), engine=sizes, threads=1)
    with pytest.raises(RequestError, match="priority is 'high'"):
        llm.engine.add([1], SamplingParams(), priority="high")
    with pytest.raises(RequestError, match="the salt is a bytes"):
        llm.engine.add([1], SamplingParams(), salt=b"a")
    low, high = (llm.engine.add([1], SamplingParams(max_tokens=1, ignore_eos=True), priority=p) for p in (1, -1))
    llm.engine.step()
    assert (low.finish_reason, high.finish_reason) == (None, "length")
    assert (llm.engine.stats().waiting, llm.engine.stats().running) == (1, 0)
    llm.engine.abort(low)
    llm.close()
