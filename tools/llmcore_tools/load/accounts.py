"""Whether what clients saw of a soak agrees with what the server says, and whether it gave everything back.

Token accounting is exact. Answers whose clients hang up have one length if they are generated to their end all the same
(:attr:`Mixture.lost`): the answers that the server counts as complete, and no client saw, account for all tokens that
no client was told of.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from llmcore_tools.load.child_server import Gauge
from llmcore_tools.load.records import HUNG_UP, OK, Record
from llmcore_tools.load.soak import FULL, Exchange, Found, Plan, Sample

PREEMPTED = 2000  # requests, below which nothing may have been preempted
WARMED_UP = 10_000  # below which what allocators keep at hand still grows
WARM, LAST = (0.1, 0.2), 0.9  # shares of the requests between which memory is compared
DRIFT = 0.02
WHOLE = ("stop", "length")  # what ends an answer that is a whole one


@dataclass(frozen=True)
class Check:
    """One thing that must hold; ``detail`` gives the figures, or the first thing that is wrong."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Drift:
    """Bytes when warm, and at the end; 0 where nobody looked."""

    warm: float
    last: float

    @property
    def share(self) -> float:
        """Growth; infinite where it is not known."""
        return self.last / self.warm - 1 if self.warm and self.last else float("inf")

    def __str__(self) -> str:
        return f"{self.warm / 1e6:.1f} MB when warm, {self.last / 1e6:.1f} MB at the end ({100 * self.share:+.2f} %)"


def checks(plan: Plan, found: Found) -> list[Check]:
    """All of them."""
    assert found.after is not None and found.end is not None
    made = [
        _answers(found.exchanges),
        _health(found.health),
        _usage(found.exchanges),
        _tokens(plan, found.exchanges, found.before, found.after),
        _conserved(found.before, found.after),
        _repeated(found.exchanges),
        _rejected(found.refusals, found.rejections),
        _pages(found.end),
        _descriptors(found.descriptors),
        _stopped(found),
    ]
    if plan.requests >= PREEMPTED:
        preempted = found.after.count("num_preemptions_total") - found.before.count("num_preemptions_total")
        made.append(Check("some requests were preempted", preempted > 0, f"{preempted:,} preemptions"))
    if plan.requests >= WARMED_UP:
        made.append(_memory(found.samples))
    return made


def _first_of(wrong: Sequence[str], good: str) -> str:
    return good if not wrong else f"{len(wrong)} are not: {wrong[0]}"


def _answers(exchanges: Sequence[Exchange]) -> Check:
    """Nothing but what each call asks for: no 5xx, no stream that breaks off, no refusal that says something else."""
    wrong = [each for exchange in exchanges if (each := _wrong(exchange))]
    return Check("every call is answered as it must be", not wrong, _first_of(wrong, f"{len(exchanges):,} calls"))


def _wrong(exchange: Exchange) -> str:
    """What is wrong with the outcome of a call; "" for nothing."""
    call, record, tally = exchange.call, exchange.record, exchange.tally
    if record.outcome == HUNG_UP:
        return "" if call.hangs_up else f"{call.path}: hung up on for no reason"
    if call.refused is not None:
        status, field = call.refused
        said = str(tally.error.get("param") or "").partition(".")[0]
        if (record.outcome, said) != (str(status), field):
            return f"{call.path}: {record.outcome} of {said!r}, not {status} of {field!r}: {record.detail}"
        return ""
    if record.outcome != OK:
        return f"{call.path}: {record.outcome}: {record.detail}"
    ended = [choice.reason in WHOLE for choice in tally.choices.values()]
    if len(ended) != call.answers or not all(ended):
        return f"{call.path}: {sum(ended)} of {call.answers} answers came to their end"
    return ""


def _health(health: Sequence[tuple[float, int]]) -> Check:
    wrong = [f"status {status}" for _, status in health if status != 200]
    return Check("/health always says 200", bool(health) and not wrong, _first_of(wrong, f"{len(health):,} questions"))


def _whole(exchanges: Sequence[Exchange]) -> Iterator[Exchange]:
    """Those that were answered with choices."""
    return (each for each in exchanges if each.record.outcome == OK and each.call.answers)


def _usage(exchanges: Sequence[Exchange]) -> Check:
    """What an answer's usage says against what can be counted in it."""
    wrong, counted = [], 0
    for exchange in _whole(exchanges):
        choices, usage = exchange.tally.choices.values(), exchange.tally.usage
        counted += exchange.call.logprobs
        prompt, tokens, total = (usage.get(f"{name}_tokens") for name in ("prompt", "completion", "total"))
        listed, chunks = sum(choice.listed for choice in choices), sum(choice.chunks for choice in choices)
        if not isinstance(prompt, int) or not isinstance(tokens, int) or total != prompt + tokens or prompt < 1:
            wrong.append(f"usage is {dict(usage)}")
        elif exchange.call.logprobs and listed != tokens:
            wrong.append(f"usage has {tokens} tokens, and {listed} are listed")
        elif chunks > tokens:
            wrong.append(f"usage has {tokens} tokens, and {chunks} chunks have text")
    return Check("usage is what the answers hold", not wrong, _first_of(wrong, f"{counted:,} counted token by token"))


def _tokens(plan: Plan, exchanges: Sequence[Exchange], before: Gauge, after: Gauge) -> Check:
    """Answers and tokens of all that came to its end: what clients were told of, and what the server counted."""
    seen = list(_whole(exchanges))
    told = sum(each.tally.usage.get("completion_tokens") or 0 for each in seen)
    answers = sum(each.call.answers for each in seen)
    counted_answers, counted = (
        sum(_grown(numbers[0], numbers[1]).get(reason, 0) for reason in WHOLE)
        for numbers in ((before.answers, after.answers), (before.tokens, after.tokens))
    )
    unseen = counted_answers - answers
    most = sum(each.call.answers for each in exchanges if each.record.outcome == HUNG_UP)
    ok = 0 <= unseen <= most and counted == told + unseen * plan.mixture.lost
    detail = (
        f"clients: {told:,} in {answers:,} answers; server: {counted:,} in {counted_answers:,}; "
        f"{unseen:,} answers to clients that had gone have {plan.mixture.lost} each"
    )
    return Check("clients and server count the same tokens", ok, detail)


def _grown(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    return {reason: count - before.get(reason, 0) for reason, count in after.items()}


def _conserved(before: Gauge, after: Gauge) -> Check:
    """Every token that was generated belongs to an answer that has ended, none of them by an error."""
    name = "generation_tokens_total"
    generated = after.count(name) - before.count(name)
    ended, answers = _grown(before.tokens, after.tokens), _grown(before.answers, after.answers)
    ok = generated == sum(ended.values()) and not answers.get("error")
    by_reason = ", ".join(f"{reason} {count:,} ({ended.get(reason, 0):,} tokens)" for reason, count in answers.items())
    return Check("every generated token is of an answer that ended", ok, f"{generated:,} generated; {by_reason}")


def _repeated(exchanges: Sequence[Exchange]) -> Check:
    """What is asked with the same seed has the same answer, whoever else is asking, and whether it is streamed."""
    texts: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    times: Counter[str] = Counter()
    for exchange in _whole(exchanges):
        if exchange.call.repeated:
            choices = exchange.tally.choices
            texts[exchange.call.repeated].add(tuple(choices[index].text for index in sorted(choices)))
            times[exchange.call.repeated] += 1
    wrong = [f"call {name}: {sorted(found)[:2]}" for name, found in texts.items() if len(found) > 1]
    return Check(
        "the same call has the same answer",
        not wrong,
        _first_of(wrong, f"{len(texts)} calls, asked {sum(times.values()):,} times"),
    )


def _rejected(refusals: Sequence[Record], rejections: Sequence[Record]) -> Check:
    """A full queue is told with 429 and when to come again."""
    wrong = [f"{record.outcome}: {record.detail}" for record in rejections if record.outcome not in (FULL, HUNG_UP)]
    full = [record for record in (*refusals, *rejections) if record.outcome == FULL]
    wrong += [f"Retry-After is {record.retry_after!r}" for record in full if not record.retry_after.isdecimal()]
    detail = f"{sum(record.outcome == FULL for record in rejections):,} of {len(rejections):,} calls to a full queue"
    ok = not wrong and any(record.outcome == FULL for record in rejections)
    return Check("a full queue gets 429 with Retry-After", ok, _first_of(wrong, f"{detail}; {len(refusals):,} before"))


def _pages(end: Gauge) -> Check:
    pages, free, wrong = (end.count(name) for name in ("kv_pages", "kv_pages_free", "kv_pages_mismatched"))
    books = "their books do not agree" if wrong else "their books agree"
    ok = end.idle and free == pages and not wrong
    return Check("nothing is left under way, and all pages are back", ok, f"{free} of {pages} are free; {books}")


def _descriptors(counts: tuple[int, int]) -> Check:
    return Check(
        "descriptors are back", 0 < counts[1] <= counts[0], f"{counts[0]} before the load, {counts[1]} after it"
    )


def _stopped(found: Found) -> Check:
    """It went when it was told to, and had nothing to complain of before."""
    code = "it does not end" if found.exit_code is None else f"exit code {found.exit_code}"
    said = f"; it says: {found.said[-1][:200]}" if found.said else ""
    return Check("SIGTERM ends it, and it has said nothing", found.exit_code == 0 and not said, code + said)


def _memory(samples: Sequence[Sample]) -> Check:
    """Resident memory; what of it no file lies behind is shown beside it."""
    resident, private = (drift(samples, name) for name in ("resident", "private"))
    detail = f"{resident}; without the pages of mapped files {private}"
    return Check(f"resident memory drifts by less than {100 * DRIFT:g} %", resident.share < DRIFT, detail)


def drift(samples: Sequence[Sample], name: str) -> Drift:
    """Of ``private`` or ``resident`` memory, under load at both times: medians over many moments."""
    low, high = WARM
    sizes = [(sample.share, float(getattr(sample.memory, name))) for sample in samples]
    warm, last = ([size for share, size in sizes if a <= share <= b] for a, b in ((low, high), (LAST, 1.0)))
    return Drift(median(warm) if warm else 0.0, median(last) if last else 0.0)


def as_json(made: Sequence[Check]) -> list[dict[str, Any]]:
    """As plain data."""
    return [dict(vars(check)) for check in made]
