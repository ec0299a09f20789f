"""``llmcore doctor``: what is installed and works here, what is missing, and how to get it."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from typing import Any

from llmcore.cli import probe
from llmcore.cli.console import table
from llmcore.cli.flags import parse
from llmcore.config.arguments import JSON
from llmcore.errors import LlmcoreError
from llmcore.hookspecs import BackendInfo
from llmcore.plugins import Plugins, plugins, resolve
from llmcore.weights.cachedir import cache_root

USAGE = "usage: llmcore doctor [--json]"
REQUIRED = (
    *("numpy", "ml_dtypes", "numba", "torch", "pluggy", "hydra-core", "tokenizers", "sentencepiece"),
    *("safetensors", "huggingface_hub", "jinja2", "rich", "prompt_toolkit"),
)
OPTIONAL = {  # distribution → what it is for, and how to get it
    "triton": ("the GPU backend", "pip install 'llmcore[gpu]'"),
    "transformers": ("llmcore verify against transformers", "pip install 'llmcore[test]'"),
    "fastapi": ("the server", "pip install 'llmcore[server]'"),
}
KINDS = ("models", "packed", "kernels")  # folders of the cache


def main(argv: Sequence[str]) -> int:
    """Prints the findings; returns 0 if models can be run and no plugin is broken."""
    given, _ = parse(argv, (JSON,), USAGE)
    if given is None:
        return 0
    found = examine(plugins())
    print(json.dumps(found, ensure_ascii=False, indent=2) if "--json" in given else as_text(found))
    return 0 if found["healthy"] else 1


def examine(installed: Plugins) -> dict[str, Any]:
    """All findings as plain data."""
    packages = probe.packages((*REQUIRED, *OPTIONAL))
    backends = {name: problem_of(backend) for name, backend in installed.backends.items()}
    root = cache_root()
    broken = [{"plugin": e.name, "distribution": e.distribution, "error": e.error} for e in installed.broken()]
    return {
        "healthy": not broken
        and any(problem is None for problem in backends.values())
        and not missing(packages, REQUIRED),
        "python": probe.python(),
        "packages": packages,
        "cpu": probe.cpu(),
        "threads": probe.threads(),
        "numba": probe.numba_threading(),
        "torch": probe.torch(),
        "backends": backends,
        "cache": {
            "folder": str(root),
            "writable": os.access(existing(root), os.W_OK),
            "bytes": {kind: probe.folder_bytes(root / kind) for kind in KINDS},
        },
        "broken_plugins": broken,
        "missing": [
            *(
                {"what": name, "for": "llmcore itself", "get": f"pip install {name}"}
                for name in missing(packages, REQUIRED)
            ),
            *({"what": n, "for": OPTIONAL[n][0], "get": OPTIONAL[n][1]} for n in missing(packages, OPTIONAL)),
        ],
    }


def missing(packages: dict[str, str | None], names: Any) -> list[str]:
    """Those of ``names`` that are not installed."""
    return [name for name in names if packages[name] is None]


def existing(path: Any) -> Any:
    """The nearest folder above ``path`` that exists: where it would be created."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def problem_of(backend: BackendInfo) -> str | None:
    """Why a backend cannot run here, or None."""
    absent = [name for name in backend.requires if importlib.util.find_spec(name) is None]
    if absent:
        return f"needs {', '.join(absent)}: pip install {' '.join(absent)}"
    try:
        problem: str | None = resolve(backend.ready)() if backend.ready else None
    except LlmcoreError as error:
        return str(error)
    return problem


def as_text(found: dict[str, Any]) -> str:
    """The findings for people, worst last."""
    cpu, threads, numba, torch, cache = (found[key] for key in ("cpu", "threads", "numba", "torch", "cache"))
    quota = f", cgroup quota {threads['quota']:g}" if threads["quota"] is not None else ""
    sizes = ", ".join(f"{kind} {size / 1e6:.1f} MB" for kind, size in cache["bytes"].items())
    gpus = [f"{gpu['name']} ({gpu['memory_bytes'] / 2**30:.0f} GiB, {gpu['capability']})" for gpu in torch["gpus"]]
    rows = [
        ("python", f"{found['python']['version']}  {found['python']['executable']}"),
        ("platform", found["python"]["platform"]),
        ("processor", f"{cpu['name']}: {' '.join(cpu['features'] or ['features unknown'])}"),
        ("threads", f"{threads['usable']} usable of {threads['processors']} (affinity {threads['affinity']}{quota})"),
        ("numba", numba.get("problem") or f"{numba['threads']} threads of its own by {', '.join(numba['layers'])}"),
        ("torch", torch.get("problem") or f"{torch['threads']} threads; CUDA {torch['cuda']}, HIP {torch['hip']}"),
        ("GPUs", ", ".join(gpus) or "none that torch can use"),
        *((f"backend {name}", problem or "ready") for name, problem in found["backends"].items()),
        ("cache", f"{cache['folder']} ({sizes}){'' if cache['writable'] else ' NOT WRITABLE'}"),
    ]
    packages = [(name, installed or "missing") for name, installed in found["packages"].items()]
    parts = [table(("fact", "value"), rows), table(("package", "version"), packages)]
    if found["missing"]:
        parts.append(table(("missing", "for", "get it by"), [tuple(item.values()) for item in found["missing"]]))
    if found["broken_plugins"]:
        parts.append(
            table(("broken plugin", "of", "error"), [tuple(item.values()) for item in found["broken_plugins"]])
        )
    parts.append("Models can be run." if found["healthy"] else "Something needs repair.")
    return "\n\n".join(parts)
