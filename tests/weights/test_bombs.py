"""Files that are as large as our limits allow and made to expand when parsed: still refused within 200 MB."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.container_bytes import ARRAY, CONFIG, STRING, U8, entry, gguf, safetensors, scalar

LOADER = """
import re, resource, sys
from pathlib import Path
from llmcore.errors import LlmcoreError
from llmcore.plugins import Plugins
from llmcore.weights import claim, open_checkpoint
import llmcore_gguf.checkpoint, llmcore_gguf.plugin, llmcore_safetensors.checkpoint, llmcore_safetensors.plugin

formats = [*llmcore_gguf.plugin.llmcore_formats(), *llmcore_safetensors.plugin.llmcore_formats()]
used = int(re.search(r"VmData:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10
limit = used + 200_000_000  # of private memory: mapped files do not count
resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
try:
    with open_checkpoint(sys.argv[1], Plugins(formats={info.name: info for info in formats})) as checkpoint:
        claim(checkpoint, {"nothing": (1,)})
except LlmcoreError as error:
    print(str(error)[:2000])
"""


def _strings(count: int, text: bytes) -> bytes:
    return struct.pack("<IIQ", ARRAY, STRING, count) + (struct.pack("<Q", len(text)) + text) * count


def _entries(count: int) -> str:
    zero = '"dtype":"U8","shape":[0],"data_offsets":[0,0]'
    return "{" + ",".join(f'"tensor-{i}":{{{zero}}}' for i in range(count)) + "}"


def bombs() -> Iterator[tuple[str, str, bytes, str]]:
    """Name, file, content, a part of the message."""
    yield "strings", "m.gguf", gguf({"x": _strings(1_190_000, "аб🙂".encode())}), "missing"
    yield "too-many-strings", "m.gguf", gguf({"x": _strings(1_200_001, b"")}), "too many strings"
    lists = struct.pack("<IIQ", ARRAY, ARRAY, 1_000_000) + struct.pack("<IQ", U8, 0) * 1_000_000
    yield "arrays", "m.gguf", gguf({"x": lists}), "too many nested arrays"
    keys = b"".join(entry(f"key-{i}", scalar(STRING, "🙂" * 90)) for i in range(65_000))
    yield "keys", "m.gguf", gguf(raw_metadata=keys, raw_count=65_000), "missing"
    yield "long-string", "m.gguf", gguf({"x": scalar(STRING, "🙂" + "a" * (31 << 20))}), "missing"
    yield "entries", "model.safetensors", safetensors(_entries(65_000), data=b""), "missing"
    wide = '{"__metadata__":{"a":"🙂' + "a" * (15 << 20) + '"}}'
    yield "wide-metadata", "model.safetensors", safetensors(wide, data=b""), "missing"
    yield "wide-space", "model.safetensors", safetensors('{"🙂' + " " * (15 << 20) + '"}'), "a name is longer"
    objects = "[" + ",".join(f'{{"{i}":0.5}}' for i in range(240_000)) + "]"
    yield "objects", "config.json", f'{{"a":{objects}}}'.encode(), "missing"
    strings = ",".join(f'"{i}é{"a" * 20}":"{i}é"' for i in range(330_000))
    yield "keys", "model.safetensors.index.json", f'{{"weight_map":{{{strings}}}}}'.encode(), "not a .safetensors file"


BOMBS = list(bombs())


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and RLIMIT_DATA")
@pytest.mark.parametrize(("name", "file", "content", "says"), BOMBS, ids=[bomb[0] for bomb in BOMBS])
def test_a_bomb_is_refused_in_bounded_memory(name: str, file: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(CONFIG)
    (tmp_path / file).write_bytes(content)
    if file == "config.json":
        (tmp_path / "model.safetensors").write_bytes(safetensors())
    opened = tmp_path / file if file.endswith(".gguf") else tmp_path
    done = subprocess.run([sys.executable, "-c", LOADER, str(opened)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
