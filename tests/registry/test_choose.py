"""Which kernel is chosen, and what is said about those that are not; all backends here are made up."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from llmcore.errors import PluginError, RegistryError
from llmcore.hookspecs import BackendInfo, KernelInfo
from llmcore.plugins import Plugins
from llmcore.registry.choose import Preference, Registry
from llmcore.registry.node import NodeView


def kernel(op: str, name: str = "", **fields: object) -> KernelInfo:
    return KernelInfo(op, f"made_up:{name or op}", **fields)  # type: ignore[arg-type]


def kv(*names: str) -> tuple[KernelInfo, ...]:
    return tuple(kernel(name, group="kv") for name in names)


BACKENDS = (
    BackendInfo(
        "fast",
        "",
        (
            kernel("linear", "four_bits", formats=("Q4_0", "Q4_1")),
            kernel("linear", "eight_bits", formats=("Q8_0",), exact=False),
            kernel("rms_norm", supported="made_up:even_rows"),
            kernel("rope", dtypes=("bfloat16",)),
            kernel("add", devices=("cuda",)),
            *kv("kv_write", "attention"),
        ),
        prepare="made_up:prepare",
    ),
    BackendInfo(
        "slow",
        "",
        (
            kernel("linear", "any_format", formats=("F32", "Q4_0", "Q8_0")),
            *(kernel(op) for op in ("rms_norm", "rope", "add")),
            *kv("kv_write", "attention"),
        ),
    ),
    BackendInfo("half", "", (*kv("attention"), kernel("qkv_rope_kv_write", group="kv", formats=("F32",)))),
    BackendInfo(
        "decoder",
        "",
        (*kv("kv_write"), kernel("attention", group="kv", supported="made_up:one_token")),
    ),
    BackendInfo("misspelt", "", (kernel("rms_nrm"),)),
    BackendInfo("moody", "", (kernel("add", supported="made_up:moods"),)),
    BackendInfo("absent", "", (kernel("add"),), requires=("a_package_that_nobody_has", "sys")),
    BackendInfo("idle", "", (kernel("add"),), ready="made_up:no_device"),
)
PLUGINS = Plugins(backends={backend.name: backend for backend in BACKENDS})


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that the records above name."""
    module = ModuleType("made_up")
    module.prepared = []
    module.prepare = module.prepared.append
    module.no_device = lambda: "there is no such device here"
    module.even_rows = lambda node: None if node.dims["M"] % 2 == 0 else f"rows are odd ({node.dims['M']})"
    module.one_token = lambda node: None if node.dims["T"] == 1 else "one token at a time"
    module.moods = lambda node: 1 / 0
    monkeypatch.setitem(sys.modules, "made_up", module)
    return module


def registry(*order: str, **ops: str) -> Registry:
    return Registry(PLUGINS, Preference(order, ops))


def linear(weight_format: str) -> NodeView:
    return NodeView("linear", "model.layers.3.mlp.up_proj", formats={"weight": weight_format})


def test_first_backend_that_can_is_taken_and_the_reason_says_which_choice_it_was() -> None:
    choice = registry("fast", "slow").choose(linear("Q4_0"))
    assert (choice.backend, choice.kernel.target, choice.reason) == ("fast", "made_up:four_bits", "choice 1 of 2")
    assert registry("slow", "fast").choose(linear("Q4_0")).backend == "slow"


def test_kernels_of_a_backend_are_tried_in_order() -> None:
    assert registry("fast").choose(linear("Q8_0")).kernel.target == "made_up:eight_bits"


def test_reason_names_why_those_before_were_passed_over() -> None:
    choice = registry("absent", "idle", "fast", "slow").choose(linear("F32"))
    assert choice.backend == "slow"
    assert choice.reason.split("; ") == [
        "choice 4 of 4",
        "absent: needs a_package_that_nobody_has, not installed",
        "idle: there is no such device here",
        "fast: does not read F32 (weight)",
    ]


@pytest.mark.parametrize(
    ("node", "says"),
    [
        (NodeView("rope", ""), "fast: not for float32"),
        (NodeView("add", ""), "fast: not on cpu"),
        (NodeView("rms_norm", "", dims={"M": 3}), "fast: rows are odd (3)"),
        (NodeView("swiglu", ""), "fast: does not offer it"),
    ],
    ids=lambda value: value.op if isinstance(value, NodeView) else "",
)
def test_every_misfit_is_named(node: NodeView, says: str) -> None:
    choice, passed = registry("fast").find(node)
    assert choice is None
    assert passed == [says]


def test_supported_predicate_sees_the_node() -> None:
    assert registry("fast", "slow").choose(NodeView("rms_norm", "", dims={"M": 4})).backend == "fast"
    assert registry("fast", "slow").choose(NodeView("rms_norm", "", dims={"M": 5})).backend == "slow"


def test_device_and_dtype_of_the_node_count() -> None:
    assert registry("fast", "slow").choose(NodeView("add", "", device="cuda")).backend == "fast"
    assert registry("fast", "slow").choose(NodeView("rope", "", dtype="bfloat16")).backend == "fast"


def test_exact_computation_passes_over_kernels_that_are_not() -> None:
    exact = Registry(PLUGINS, Preference(("fast", "slow"), exact=True))
    choice = exact.choose(linear("Q8_0"))
    assert choice.backend == "slow"
    assert "fast: does not read Q8_0 (weight) / not exact" in choice.reason
    assert exact.choose(linear("Q4_1")).backend == "fast"


def test_an_override_is_taken_over_the_order_and_nothing_else_is_tried() -> None:
    chosen = registry("fast", "slow", linear="slow")
    assert chosen.choose(linear("Q4_0")).reason == "backend.ops.linear=slow"
    with pytest.raises(RegistryError, match="slow: does not read Q4_1"):
        chosen.choose(linear("Q4_1"))
    assert chosen.choose(NodeView("rms_norm", "", dims={"M": 2})).backend == "fast"


def test_an_override_may_name_a_backend_outside_the_order() -> None:
    chosen = registry("slow", linear="fast")
    assert chosen.choose(linear("Q4_0")).backend == "fast"
    assert chosen.choose(NodeView("rope", "")).backend == "slow"


def test_overriding_one_op_of_a_group_moves_the_whole_group() -> None:
    chosen = registry("fast", "slow", attention="slow")
    choice = chosen.choose(NodeView("kv_write", ""))
    assert (choice.backend, choice.reason) == ("slow", "group 'kv' is bound to slow")


def test_a_group_cannot_be_split() -> None:
    with pytest.raises(RegistryError, match=r"attention=fast, kv_write=slow: these ops share a private layout"):
        registry("fast", "slow", attention="fast", kv_write="slow")
    registry("fast", attention="slow", kv_write="slow")


def test_a_group_is_bound_only_where_it_is_whole() -> None:
    nodes = [NodeView("attention", ""), NodeView("kv_write", "")]
    chosen = registry("half", "fast")
    chosen.bind_groups(nodes)
    choice = chosen.choose(nodes[0])
    assert choice.backend == "fast"
    assert "choice 2 of 2 for group 'kv'; half: kv_write: does not offer it" in choice.reason
    with pytest.raises(RegistryError, match=r"group 'kv': decoder: attention: one token at a time; half: kv_write"):
        registry("decoder", "half").bind_groups([NodeView("attention", "", dims={"T": 2}), nodes[1]])


def test_a_type_of_the_cache_that_the_backend_lacks() -> None:
    """The error names those who have it, and what the asked one has."""
    types = ("float32", "int8")
    writes, reads = (kernel(op, group="kv", kv_dtypes=types) for op in ("kv_write", "attention"))
    small = BackendInfo("small", "", (writes, reads), kv_layouts=dict.fromkeys(types, "made_up:layout"))
    plain = BackendInfo("plain", "", kv("kv_write", "attention"), kv_layouts={"float32": "made_up:layout"})
    installed = Plugins(backends={each.name: each for each in (small, plain)})
    nodes = [NodeView("kv_write", ""), NodeView("attention", "")]

    def bound(order: tuple[str, ...], kv_dtype: str) -> Registry:
        found = Registry(installed, Preference(order, kv_dtype=kv_dtype))
        found.bind_groups(nodes)
        return found

    assert bound(("plain", "small"), "float32").choose(nodes[0]).backend == "plain"
    choice = bound(("plain", "small"), "int8").choose(nodes[1])
    assert choice.backend == "small" and "plain: kv_write: not for a KV cache of int8" in choice.reason
    with pytest.raises(RegistryError, match="plain: kv_write: not for a KV cache of int8") as error:
        bound(("plain",), "int8")
    assert "engine.kv_dtype=int8 is offered by: small; plain offers float32" in str(error.value)
    with pytest.raises(RegistryError) as error:
        bound(("plain", "small"), "bfloat16")
    assert "offered by: no installed backend; plain offers float32; small offers float32, int8" in str(error.value)


def test_a_type_of_the_cache_that_is_left_open() -> None:
    """Bfloat16 where activations are rounded and the backend has it; order comes first."""
    types = ("float32", "bfloat16")
    writes, reads = (kernel(op, group="kv", kv_dtypes=types) for op in ("kv_write", "attention"))
    both = BackendInfo("both", "", (writes, reads), kv_layouts=dict.fromkeys(types, "made_up:layout"))
    plain = BackendInfo("plain", "", kv("kv_write", "attention"), kv_layouts={"float32": "made_up:layout"})
    installed = Plugins(backends={each.name: each for each in (both, plain)})

    def bound(*order: str, rounded: bool, exact: bool = False) -> tuple[str, str]:
        found = Registry(installed, Preference(order, exact=exact, kv_dtype="auto"))
        found.bind_groups([NodeView("kv_write", ""), NodeView("attention", "")], rounded=rounded)
        return found.kv_dtype, found.choose(NodeView("attention", "")).backend

    assert bound("both", "plain", rounded=True) == ("bfloat16", "both")
    assert bound("plain", "both", rounded=True) == ("float32", "plain")
    assert bound("both", rounded=False) == ("float32", "both")
    assert bound("both", rounded=True, exact=True) == ("float32", "both")


def test_the_type_of_the_cache_is_settled_once() -> None:
    """By its own group; and the reason says why it is not the smaller one."""
    other = kernel("rms_norm", group="other")
    plain = BackendInfo("plain", "", (*kv("kv_write", "attention"), other), kv_layouts={"float32": "made_up:layout"})
    found = Registry(Plugins(backends={"plain": plain}), Preference(("plain",), kv_dtype="auto"))
    found.bind_groups([NodeView(op, "") for op in ("kv_write", "attention", "rms_norm")], rounded=True)
    assert found.kv_dtype == "float32"
    assert "bfloat16: kv_write: not for a KV cache of bfloat16" in found.choose(NodeView("attention", "")).reason


def test_a_group_is_bound_for_all_sizes_at_once() -> None:
    sizes = [NodeView(op, "", dims={"T": tokens}) for tokens in (1, 64) for op in ("kv_write", "attention")]
    chosen = registry("decoder", "fast")
    chosen.bind_groups(sizes)
    assert {chosen.choose(view).backend for view in sizes} == {"fast"}
    only_decode = registry("decoder", "fast")
    only_decode.bind_groups(sizes[:2])
    assert {only_decode.choose(view).backend for view in sizes[:2]} == {"decoder"}


def test_an_override_must_name_a_backend_that_offers_the_op() -> None:
    with pytest.raises(RegistryError, match=r"half does not offer linear\n  → offered by: .*fast"):
        registry("fast", linear="half")


def test_a_kernel_of_an_unknown_op_is_told() -> None:
    with pytest.raises(PluginError, match=r"declares a kernel for op 'rms_nrm'(?s:.*)did you mean 'rms_norm'"):
        registry("misspelt")


def test_a_failing_predicate_names_its_backend() -> None:
    with pytest.raises(PluginError, match=r"backend 'moody': .*moods failed on op add: ZeroDivisionError"):
        registry("moody").choose(NodeView("add", ""))


def test_without_a_kernel_the_error_says_what_each_backend_lacks() -> None:
    with pytest.raises(RegistryError) as caught:
        registry("fast", "absent").choose(linear("Q6_K"))
    assert "no kernel for op 'linear' at model.layers.3.mlp.up_proj" in caught.value.message
    assert "fast: does not read Q6_K (weight)" in caught.value.message
    assert "absent: needs a_package_that_nobody_has" in caught.value.message
    assert "llmcore ops" in caught.value.remedy


def test_unknown_names_are_refused_with_near_ones_before_anything_is_bound() -> None:
    with pytest.raises(PluginError, match=r"there is no backend 'fasst'(?s:.*)did you mean 'fast'"):
        registry("fasst")
    with pytest.raises(PluginError, match="there is no backend 'slo'"):
        registry("fast", linear="slo")
    with pytest.raises(RegistryError, match=r"there is no op 'linaer'(?s:.*)did you mean 'linear'"):
        registry("fast", linaer="slow")


@pytest.fixture
def quiet_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without the module that the records name."""
    monkeypatch.delitem(sys.modules, "made_up")
    yield


@pytest.mark.usefixtures("quiet_path")
def test_a_target_is_imported_only_when_it_is_used() -> None:
    assert registry("fast").choose(linear("Q4_0")).kernel.target == "made_up:four_bits"
    with pytest.raises(PluginError, match="cannot import 'made_up:even_rows'"):
        registry("fast").choose(NodeView("rms_norm", "", dims={"M": 2}))


def test_a_backend_is_prepared_once_with_the_users_threads(made_up: ModuleType) -> None:
    chosen = Registry(PLUGINS, Preference(("fast", "slow"), threads=3))
    chosen.prepare("fast")
    chosen.prepare("fast")
    chosen.prepare("slow")
    assert made_up.prepared == [3]
