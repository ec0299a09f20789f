"""Every kernel of a backend against every case of its op.

:func:`checks` lists what there is to check of a kernel; each :class:`Check` runs by itself and raises
:class:`KernelMismatch`. :func:`run_case` is the part that does it for one kernel and one case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, product

from llmcore import ops
from llmcore.cache.layout import KV_DTYPES
from llmcore.device import HOST, Device
from llmcore.errors import PluginError
from llmcore.hookspecs import BackendInfo, KernelInfo
from llmcore.ops import Case, OpSpec, tolerances
from llmcore.plugins import resolve
from llmcore.registry.node import NodeView
from llmcore.testing import state
from llmcore.testing.buffers import Array, KernelMismatch
from llmcore.testing.invoke import Machine, Setting, execute, why_not
from llmcore.testing.judge import compare, compare_bits, compare_choice
from llmcore.testing.operands import Values, expected, fits, make_values
from llmcore.weights.formats import FORMATS

ROWS = ("M", "T", "R")  # dims that count tokens: a row must not depend on the others

Formats = Mapping[str, str]  # weight parameter → format


SEVERAL_PRODUCTS = 3.0  # that meet: where one has its error, another may be at its largest


@dataclass(frozen=True)
class Check:
    """One kernel on one case, with weights of one assignment of formats, on one device."""

    backend: BackendInfo
    kernel: KernelInfo
    case: Case
    formats: tuple[tuple[str, str], ...]
    dtype: str
    kv_dtype: str = "float32"
    device: Device = HOST

    @property
    def id(self) -> str:
        """A short name: op, target, formats, sizes."""
        sizes = ",".join(f"{letter}{size}" for letter, size in self.case.dims.items())
        attrs = ",".join(f"{name}={value:.3g}" for name, value in self.case.attrs.items())
        weights = "+".join(dict.fromkeys(name for _, name in self.formats))
        kind = "" if self.dtype == "float32" else self.dtype
        cache = "" if self.kv_dtype == "float32" else f"kv-{self.kv_dtype}"
        where = f"{self.kernel.op}.{self.kernel.abi}"
        return " ".join(filter(None, (where, kind, cache, weights, sizes, attrs, *self.case.present, self.case.note)))

    def unsupported(self, device: str = "") -> str:
        """Why the kernel does not take this case, by its own word; empty where it does.

        ``device``: the kind of another device to ask for.
        """
        kind = device or self.device.kind
        return unsupported(self.kernel, self.backend, self.case, dict(self.formats), self.dtype, self.kv_dtype, kind)

    def run(self, machine: Machine | None = None, *, batch_invariance: bool = False) -> None:
        """Runs it under every setting; raises :class:`KernelMismatch`."""
        run_case(
            self.kernel,
            self.backend,
            self.case,
            formats=dict(self.formats),
            dtype=self.dtype,
            kv_dtype=self.kv_dtype,
            device=self.device,
            machine=machine,
            batch_invariance=batch_invariance,
        )


def kernels(backend: BackendInfo, names: Sequence[str] = ()) -> list[KernelInfo]:
    """The kernels of ``backend``, or those of the ops in ``names``.

    Raises:
        RegistryError: a kernel (or the caller) names an op that does not exist.
    """
    for name in (*names, *(kernel.op for kernel in backend.kernels)):
        ops.get(name)
    return [kernel for kernel in backend.kernels if not names or kernel.op in names]


def checks(backend: BackendInfo, kernel: KernelInfo, device: Device = HOST) -> Iterator[Check]:
    """Everything to be checked of one kernel of ``backend``: dtypes × types of the KV cache × formats × cases."""
    spec = ops.get(kernel.op)
    kv_dtypes = kernel.kv_dtypes if kernel.group == "kv" else ("float32",)
    for dtype, kv_dtype in product(kernel.dtypes, kv_dtypes):
        for formats in _assignments(spec, kernel):
            for case in spec.cases() if spec.cases else ():
                if fits(spec, case, formats):
                    yield Check(backend, kernel, case, tuple(formats.items()), dtype, kv_dtype, device)


def _assignments(spec: OpSpec, kernel: KernelInfo) -> Iterator[Formats]:
    """Each format for all weights; and where an op has several weights, formats mixed as checkpoints mix them."""
    names = [param.name for param in spec.of("weight") if param.type == "any"]
    if not names:
        yield {}
        return
    for name in kernel.formats:
        yield dict.fromkeys(names, name)
    if len(names) > 1 and len(kernel.formats) > 1:
        yield dict(zip(names, cycle(kernel.formats), strict=False))


def declaration_errors(kernel: KernelInfo, backend: BackendInfo) -> list[str]:
    """What is wrong with the record itself: contradictions, names that lead nowhere, a kernel that takes no case."""
    spec = ops.get(kernel.op)
    errors = []
    has_weight = any(param.type == "any" for param in spec.of("weight"))
    if has_weight != bool(kernel.formats):
        errors.append("names no weight formats" if has_weight else f"names formats, but {spec.name} has no such weight")
    errors += [f"format {name!r} is unknown" for name in kernel.formats if name not in FORMATS]
    errors += [f"dtype {name!r} has no tolerance" for name in kernel.dtypes if name not in tolerances.RELATIVE]
    if bool(kernel.pack) != bool(kernel.layout):
        errors.append(
            "pack and layout go together: the name and version of a layout tell when packed bytes are reusable"
        )
    if spec.of("state") and not kernel.group:
        errors.append('works on the KV cache, so it needs group="kv"')
    if spec.of("state"):
        errors += [
            f"works on a KV cache of {name}, but its backend names no layout for it in kv_layouts"
            for name in kernel.kv_dtypes
            if name not in backend.kv_layouts
        ]
        errors += [f"KV cache of {name!r}: there is no such type" for name in kernel.kv_dtypes if name not in KV_DTYPES]
    for target in filter(None, (kernel.target, kernel.supported, kernel.pack)):
        try:
            resolve(target)
        except PluginError as error:
            errors.append(error.message)
    if not errors:
        where = "cpu" if "cpu" in kernel.devices else kernel.devices[0]
        refusals = [check.unsupported(where) for check in checks(backend, kernel)]
        if all(refusals):
            errors.append(f"takes no case of {spec.name}: {'; '.join(dict.fromkeys(refusals)) or 'there is none'}")
    return errors


def unsupported(
    kernel: KernelInfo,
    backend: BackendInfo,
    case: Case,
    formats: Formats,
    dtype: str,
    kv_dtype: str = "float32",
    device: str = "cpu",
) -> str:
    """Why the registry would not bind ``kernel`` to a node of this case; empty where it would."""
    node = NodeView(
        kernel.op,
        "",
        device,
        dtype,
        dims=case.dims,
        formats=formats,
        attrs=case.attrs,
        present=frozenset(case.present),
        one_each=case.one_each,
    )
    return why_not(backend, (kernel,), node, kv_dtype)[1]


def settings(spec: OpSpec, kernel: KernelInfo, plain: Setting) -> Iterator[Setting]:
    """Plain; threads and unaligned operands; and each output in the memory of each input that it may take over.

    A linear layer that makes logits writes them as float32, whatever activations are.
    """
    threads = 2 if kernel.abi == "native" else 1
    yield plain
    if spec.name == "linear" and plain.dtype != "float32":
        yield replace(plain, wide=True)
    if kernel.abi == "native":
        yield replace(plain, threads=threads, late=True)
    yield replace(plain, threads=threads, skewed=True)
    for output, inputs in spec.inplace.items():
        for name in inputs:
            yield replace(plain, threads=threads, inplace=(output, name))


def run_case(
    kernel: KernelInfo,
    backend: BackendInfo,
    case: Case,
    *,
    formats: Formats | None = None,
    dtype: str = "float32",
    kv_dtype: str = "float32",
    device: Device = HOST,
    machine: Machine | None = None,
    batch_invariance: bool = False,
    seed: int = 0,
) -> None:
    """Runs ``kernel`` on ``case`` under every setting and compares with the op's reference.

    Args:
        backend: whose kernel it is; its other kernels are used to fill or read a KV cache.
        formats: weight parameter → format, for the weights declared ``any``.
        kv_dtype: of the KV cache.
        device: where operands lie.
        machine: keeps worker pools from one case to the next.
        batch_invariance: also ask that a row's bits do not depend on the other rows, nor on the number of threads.

    Raises:
        KernelMismatch: it is wrong; the message says under which setting, where and by how much.
    """
    spec = ops.get(kernel.op)
    values = make_values(spec, case, formats or {}, dtype, seed)
    for setting in settings(spec, kernel, Setting(machine or Machine(), dtype, kv_dtype, device=device)):
        check_values(kernel, backend, case, values, setting, batch_invariance=batch_invariance)


def check_values(
    kernel: KernelInfo,
    backend: BackendInfo,
    case: Case,
    values: Values,
    setting: Setting,
    *,
    batch_invariance: bool = False,
    slack: float = 1.0,
) -> None:
    """Runs ``kernel`` on the ``values`` of ``case`` under one setting; see :func:`run_case`.

    ``slack``: by how much the tolerance is widened; attention keeps its own. Products of quantized activations with
    several weights that meet are allowed ``SEVERAL_PRODUCTS``.
    """
    spec = ops.get(kernel.op)
    if not kernel.exact and sum(param.type == "any" for param in spec.of("weight")) > 1:
        slack = max(slack, SEVERAL_PRODUCTS)
    try:
        if spec.name == "attention":
            state.check_attention(kernel, backend, case, values, setting, batch_invariance=batch_invariance)
        elif spec.of("state"):
            state.check_writer(kernel, backend, case, values, setting, slack=slack)
        else:
            _check_stateless(kernel, case, values, setting, batch_invariance, slack)
    except KernelMismatch as error:
        raise type(error)(f"{kernel.op} ({kernel.target}; {setting}): {error}") from error


def _check_stateless(
    kernel: KernelInfo, case: Case, values: Values, setting: Setting, batch_invariance: bool, slack: float
) -> None:
    spec = ops.get(kernel.op)
    got = execute(kernel, values, case.dims, case.attrs, setting)
    factor = slack * tolerances.relative(setting.dtype, exact=kernel.exact)
    if spec.name == "classifier_argmax":
        compare_choice("ids", got["ids"], expected(ops.get("linear"), values, {})["y"], factor)
    else:
        zeros = spec.name in tolerances.EXACT_ZEROS
        for name, want in expected(spec, values, case.attrs).items():
            compare(name, got[name], want, factor, exact_zeros=zeros)
    if batch_invariance and _row_dim(spec):
        _check_rows_alone(kernel, case, values, setting, got)


def _row_dim(spec: OpSpec) -> str:
    """The letter of the dim that counts rows, where each row of the outputs is made from that row of the inputs."""
    letter = spec.outputs[0].dims[0]
    across = letter in ROWS and all(param.dims[0] == letter for param in spec.of("input", "output"))
    return letter if across else ""


def _check_rows_alone(
    kernel: KernelInfo, case: Case, values: Values, setting: Setting, together: Mapping[str, Array]
) -> None:
    """The same bits when a row is alone, on one thread, as when it is one of many."""
    spec = ops.get(kernel.op)
    letter = _row_dim(spec)
    inputs = {param.name for param in spec.of("input")}
    alone = replace(setting, threads=1)
    for row in range(case.dims[letter]):
        one = {name: a[row : row + 1] if name in inputs else a for name, a in values.arrays.items()}
        got = execute(kernel, Values(one, values.stored), {**case.dims, letter: 1}, case.attrs, alone)
        for name, array in got.items():
            compare_bits(name, array, together[name][row : row + 1], "who shares the batch, or the number of threads")
