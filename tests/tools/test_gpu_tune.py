"""``llmcore gpu-tune``: the search, its table, and what it measures; kernels run in Triton's interpreter."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import gpu_kernels
from llmcore.cli.main import main
from llmcore_tools.gpu.operands import operands
from llmcore_tools.gpu.search import GAIN, neighbours, search
from llmcore_tools.gpu.tune import Table, Tuner, alike
from llmcore_tools.gpu.workload import Argument, Call, Step, Workload, calls_of
from llmcore_triton import configs
from llmcore_triton.configs import Config


def distance(config: Config, m: int, n: int, warps: int) -> float:
    """A cost whose optimum is the given configuration."""
    wanted = {"M": m, "N": n}
    return (
        1
        + sum(abs(config.meta[key].bit_length() - wanted[key].bit_length()) for key in wanted)
        + abs(config.num_warps.bit_length() - warps.bit_length())
    )


def test_search_climbs_to_the_optimum_and_tries_nothing_twice() -> None:
    tried: list[str] = []

    def cost(config: Config) -> float:
        tried.append(repr(config))
        return distance(config, 128, 16, 8)

    found = search(Config({"M": 32, "N": 64}, 4, 3), cost)
    assert (found.best, found.cost, found.default_cost) == (Config({"M": 128, "N": 16}, 8, 3), 1, 6)
    assert len(tried) == len(set(tried)) == found.tried
    assert found.tried <= 8 * 6 + 2, "six steps and two trades; the whole grid has 13 · 13 · 5 · 5"


def test_search_goes_along_a_ridge_of_two_options() -> None:
    """More stages pay with larger tiles alone."""

    def cost(config: Config) -> float:
        return 1 / (config.meta["M"].bit_length() * config.num_stages)

    best = search(Config({"M": 16}, 4, 1), lambda config: inf if config.meta["M"] > 256 else cost(config)).best
    assert best == Config({"M": 256}, 4, 5)


def test_what_cannot_run_is_not_taken_and_bounds_the_search() -> None:
    default = Config({"M": 64, "N": 64}, 4, 2)
    shared = search(default, lambda c: inf if c.meta["M"] * c.meta["N"] > 8192 else 1 / c.meta["M"])
    assert shared.best.meta["M"] == 512 and shared.best.meta["N"] == 16
    assert search(default, lambda _config: inf).cost == inf
    assert shared.tried < 120
    late = search(default, lambda c: inf if c == default else 1.0)
    assert late.default_cost == inf and late.cost == 1.0, "its default may be what this GPU cannot run"


def test_noise_changes_nothing() -> None:
    default = Config({"M": 64}, 4, 2)
    assert search(default, lambda c: 1.0 if c == default else 1 - GAIN / 2).best == default
    assert search(default, lambda c: 1.0 if c == default else 1 - 2 * GAIN).best != default


def test_neighbours_are_configurations_that_could_be() -> None:
    default = Config({"BLOCK": 16, "HEADS": 3, "SPLIT": True, "ONE": 1}, 1, 1)
    found = list(neighbours(default))
    assert {c.meta["BLOCK"] for c in found} == {16, 32}, "tiles do not shrink below what a dot takes"
    assert all(c.meta["HEADS"] == 3 and c.meta["SPLIT"] is True for c in found), "no powers of two, no tiles"
    assert all(c.num_warps in (1, 2) and c.num_stages in (1, 2) for c in found)
    largest = Config({"BLOCK": 65536}, 16, 5)
    assert {c.meta["BLOCK"] for c in neighbours(largest)} == {65536, 32768}
    assert {c.num_warps for c in neighbours(largest)} == {16, 8} and {c.num_stages for c in neighbours(largest)} == {
        5,
        4,
    }


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder in the place of the backend's tables."""
    monkeypatch.setattr(configs, "TABLES", tmp_path)

    def forget() -> None:
        configs.table.cache_clear()
        configs._config.cache_clear()

    forget()
    yield tmp_path
    monkeypatch.undo()
    forget()


def add_call(size: int = 3072, name: str = "add") -> Call:
    """``add`` of ``size`` elements."""
    kernel = next(kernel for kernel in gpu_kernels.good()[0].kernels if kernel.op == "add")
    kernel = replace(kernel, target=f"{gpu_kernels.HERE}:{name}")
    return Call(kernel, tuple(Argument(each, (1, size), "float32") for each in "aby"), ())


def being_tried(kernel: str, shape: tuple[int, ...], default: Config) -> Config:
    """What a launcher would be told now."""
    return configs.config(kernel, shape, default)


def timer_of(cost: Callable[[Config], float], size: int = 3072, runs: list[Config] | None = None) -> Any:
    """A timer that runs once, and says what the configuration being tried costs."""

    def timer(run: Callable[[], None]) -> float:
        run()
        config = being_tried("test_add", (size,), gpu_kernels.BLOCK)
        if runs is not None:
            runs.append(config)
        return cost(config)

    return timer


def test_what_was_found_is_what_launchers_get(tables: Path) -> None:
    """The table is written, read back, and used: for its shape, and for the nearest of those that it lacks."""
    device = tables / "interpreter.json"
    tuner = Tuner(Table.read(device), timer_of(lambda c: 4096 / c.meta["BLOCK"] + 0.1 * c.num_stages), "cpu", print)
    assert configs.config("test_add", (3072,), gpu_kernels.BLOCK) == gpu_kernels.BLOCK
    tuner.tune([add_call()])
    written = json.loads(device.read_text())
    assert written == {"test_add": [{"shape": [3072], "meta": {"BLOCK": 65536}, "num_warps": 4, "num_stages": 1}]}
    configs.table.cache_clear()
    configs._config.cache_clear()
    assert configs.config("test_add", (3072,), gpu_kernels.BLOCK) == Config({"BLOCK": 65536}, 4, 1)
    assert configs.config("test_add", (4000,), gpu_kernels.BLOCK).meta == {"BLOCK": 65536}
    assert configs.config("test_other", (3072,), gpu_kernels.BLOCK) == gpu_kernels.BLOCK


def test_a_search_goes_on_where_it_stopped(tables: Path) -> None:
    runs: list[Config] = []
    timer = timer_of(lambda c: c.num_stages, runs=runs)
    file = tables / "t.json"
    Tuner(Table.read(file), timer, "cpu", print).tune([add_call()])
    assert runs
    runs.clear()
    Tuner(Table.read(file), timer, "cpu", print).tune([add_call()])
    assert not runs, "the table has it"
    Tuner(Table.read(file), timer, "cpu", print).tune([add_call()], ["other"], again=True)
    assert not runs, "not asked for"
    Tuner(Table.read(file), timer, "cpu", print).tune([add_call()], ["test_add"], again=True)
    assert runs
    assert len(Table.read(file).entries["test_add"]) == 1, "in place of the older answer"


def test_an_interrupted_search_keeps_what_it_has(tables: Path) -> None:
    file = tables / "t.json"

    def timer(run: Callable[[], None]) -> float:
        if being_tried("test_add", (64,), gpu_kernels.BLOCK) != gpu_kernels.BLOCK:
            raise KeyboardInterrupt
        return being_tried("test_add", (3072,), gpu_kernels.BLOCK).num_stages

    with pytest.raises(KeyboardInterrupt):
        Tuner(Table.read(file), timer, "cpu", print).tune([add_call(), add_call(64)])
    assert [entry["shape"] for entry in Table.read(file).entries["test_add"]] == [[3072]]
    assert list(tables.iterdir()) == [file], "and nothing half written"


def test_a_configuration_that_computes_something_else_is_none(tables: Path) -> None:
    """Larger blocks would win, but leave out a remainder."""
    file = tables / "t.json"
    tuner = Tuner(Table.read(file), timer_of(lambda c: 4096 / c.meta["BLOCK"]), "cpu", print)
    tuner.tune([add_call(name="sloppy_add")])
    assert Table.read(file).entries["test_add"][0]["meta"] == {"BLOCK": 1024}


def test_one_answer_serves_all_calls_that_ask(tables: Path) -> None:
    """Two launchers ask for the same shape; what is best for one of them costs the other more than it wins."""
    file, calls = tables / "t.json", [add_call(), add_call()]
    calls[1] = replace(calls[1], arguments=tuple(Argument(each, (2, 1536), "float32") for each in "aby"))
    rows: list[int] = []

    class Watched(Tuner):
        def launch(self, call: Call, tensors: Any) -> None:
            rows[:] = [tensors[0].shape[0]]
            super().launch(call, tensors)

    def timer(run: Callable[[], None]) -> float:
        run()
        block = being_tried("test_add", (3072,), gpu_kernels.BLOCK).meta["BLOCK"]
        return 1000 / block if rows == [1] else 10 * block

    Watched(Table.read(file), timer, "cpu", print).tune(calls)
    entry = Table.read(file).entries["test_add"][0]
    assert entry["meta"] == {"BLOCK": 1024}


def test_outputs_are_compared() -> None:
    a = torch.tensor([[1.0, -2.0], [float("nan"), 4.0]])
    assert alike([a], [a.clone()]) and alike([a], [a + 0.05])
    assert not alike([a], [a + 0.2]) and not alike([a], [torch.ones(2, 2)])
    assert not alike([a.nan_to_num()], [a]), "NaN where there was a number"
    assert alike([torch.tensor([1, 2])], [torch.tensor([1, 2])]) and not alike(
        [torch.tensor([1, 2])], [torch.tensor([1, 3])]
    )


def test_operands_of_every_op_are_valid() -> None:
    """Indices lie inside of what they point into, and no number is NaN, whatever the bytes are read as."""
    from llmcore_torch.plugin import llmcore_backends

    (offered,) = llmcore_backends()
    offered = replace(offered, kernels=tuple(_on_gpu(kernel) for kernel in offered.kernels))
    calls = calls_of([offered], Workload(("llama-3.2-1b",), ("BF16",), ("bfloat16",), (Step(2, 2), Step(32, 1)))).places
    seen = set()
    for call in calls:
        if sum(_elements(argument) for argument in call.arguments) > 17_500_000:  # two sequences' pages
            continue
        given = {a.name: t for a, t in zip(call.arguments, operands(call, "cpu"), strict=True) if a is not None}
        seen.add(call.kernel.op)
        assert all(not each.is_floating_point() or bool(each.isfinite().all()) for each in given.values())
        _check_indices(given)
    assert {"kv_write", "attention", "rms_norm", "rope", "gather", "top_p", "sample"} <= seen


def _on_gpu(kernel: Any) -> Any:
    formats = kernel.formats and ("BF16",)
    return replace(kernel, devices=("cuda",), dtypes=("bfloat16",), pack="", formats=formats)


def _elements(argument: Argument | None) -> int:
    return torch.Size(argument.shape).numel() if argument else 0


def _check_indices(given: dict[str, Any]) -> None:
    bounds = {"rows": "x", "ids": "weight", "positions": "cos"}
    for name, into in bounds.items():
        if name in given and given[name].dtype == torch.int32 and into in given:
            assert given[name].min() >= 0 and given[name].max() < given[into].shape[0]
    if "slots" in given:
        assert len(set(given["slots"].tolist())) == len(given["slots"])
        assert given["slots"].max() < given["kv"].shape[0] * 16
    if "block_tables" in given:
        assert len(given["block_tables"].unique()) == given["block_tables"].numel() <= given["kv"].shape[0]
        ends = given["query_starts"] + given["query_lens"]
        assert ends[-1] == given["q"].shape[0] and (given["kv_lens"] >= given["query_lens"]).all()


def test_bytes_are_numbers_however_they_are_read() -> None:
    call = replace(add_call(), arguments=tuple(Argument(each, (1, 4096), "uint8") for each in "aby"))
    made = operands(call, "cpu")[0]
    assert made is not None and len(made.unique()) > 8
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        values = made.view(dtype).double()
        assert bool(values.isfinite().all()) and 0 < float(values.abs().max()) < 1


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu-tune"]) == 2
    assert "GPU" in capsys.readouterr().err
