"""The hub source, against a hub on the loopback interface; each call is a process: the client reads settings once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.hub_server import COMMIT, GATED, HubServer, serve
from llmcore.errors import DownloadError, ModelReferenceError
from llmcore_sources import hub
from llmcore_sources.hub_files import choose

MODEL = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "consolidated.safetensors": b"again",
    "tokenizer.json": b"{ }",
    "tokenizer.model": b"sp",
    "chat_template.jinja": b"{{ x }}",
    "pytorch_model.bin": b"pickle",
    "modeling_custom.py": b"print('no')",
    "README.md": b"hello",
    "onnx/config.json": b"{}",
}
GGUF = {
    "config.json": b"{}",
    "X-Q4_K_M.gguf": b"GGUF4",
    "X-Q4_K_S.gguf": b"GGUFs",
    "X-Q8_0.gguf": b"GGUF8",
    "README.md": b"-",
}
REPOSITORIES = {
    "acme/model": MODEL,
    "acme/model-GGUF": GGUF,
    "acme/pickled": {"pytorch_model.bin": b"x", "config.json": b"{}"},
}

CALL = """
import json, sys
from llmcore.errors import LlmcoreError
from llmcore.weights.cachedir import FetchOptions
from llmcore_sources import hub
told = []
options = FetchOptions(progress=lambda *seen: told.append(seen), **json.loads(sys.argv[2]))
try:
    print(json.dumps({"path": str(hub.fetch(sys.argv[1], options)), "told": told}))
except LlmcoreError as error:
    print(json.dumps({"error": type(error).__name__, "message": error.message, "remedy": error.remedy}))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with serve(REPOSITORIES) as running:
        yield running


def fetch(
    server: HubServer | str, home: Path, reference: str, offline_env: bool = False, **options: Any
) -> dict[str, Any]:
    url = server if isinstance(server, str) else server.url
    settings = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline_env)), "NO_PROXY": "*"}
    done = subprocess.run(
        [sys.executable, "-c", CALL, reference, json.dumps(options)],
        env={**os.environ, **settings, "HF_HUB_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "stderr": done.stderr}


def test_model_comes_without_code_or_pickles_then_works_offline(server: HubServer, tmp_path: Path) -> None:
    server.downloaded.clear()
    found = fetch(server, tmp_path, "acme/model")
    folder = Path(found["path"])
    kept = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer.model", "chat_template.jinja"}
    assert {file.name for file in folder.iterdir()} == kept == set(server.downloaded)
    assert folder.is_relative_to(tmp_path) and (folder / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    total = sum(len(MODEL[name]) for name in kept)
    assert found["told"][-1] == ["downloading acme/model", total, total]
    for offline in ({"offline_env": True}, {"offline": True}):
        assert fetch("http://127.0.0.1:9", tmp_path, "acme/model", **offline)["path"] == str(folder)
    fallen_back = fetch("http://127.0.0.1:9", tmp_path, "acme/model")
    assert fallen_back["path"] == str(folder) and "the hub cannot be reached" in fallen_back["stderr"]


def test_one_quantization_of_a_gguf_repository(server: HubServer, tmp_path: Path) -> None:
    server.downloaded.clear()
    found = Path(fetch(server, tmp_path, f"acme/model-GGUF:q4_k_m@{COMMIT}")["path"])
    assert found.name == "X-Q4_K_M.gguf" and found.read_bytes() == b"GGUF4"
    assert server.downloaded == ["X-Q4_K_M.gguf"]
    wrong = fetch(server, tmp_path, "acme/model-GGUF:Q8_0", sha256="0" * 64)
    assert wrong["error"] == "DownloadError" and "sha256" in wrong["message"]


@pytest.mark.parametrize(
    ("reference", "options", "error", "message", "remedy"),
    [
        (GATED, {}, "DownloadError", "gated", "HF_TOKEN"),
        ("acme/nothing", {}, "DownloadError", "not on the hub", "spelling"),
        ("acme/model@v9", {}, "DownloadError", "revision 'v9'", "branch"),
        ("acme/pickled", {}, "DownloadError", "pickled", "safetensors"),
        ("acme/model", {"offline": True}, "DownloadError", "not among the downloaded", "HF_HUB_OFFLINE"),
    ],
)
def test_refusals_name_the_remedy(
    server: HubServer, tmp_path: Path, reference: str, options: dict[str, Any], error: str, message: str, remedy: str
) -> None:
    found = fetch(server, tmp_path, reference, **options)
    assert found["error"] == error and message in found["message"] and remedy in found["remedy"]


def test_no_network(tmp_path: Path) -> None:
    found = fetch("http://127.0.0.1:9", tmp_path, "acme/model")
    assert found["error"] == "DownloadError" and "network" in found["remedy"]


@pytest.mark.parametrize(
    ("reference", "parsed"),
    [
        ("org/name", ("org/name", "", None)),
        ("org/name.v2-GGUF:Q4_K_M", ("org/name.v2-GGUF", "Q4_K_M", None)),
        ("org/name:Q8_0@refs/pr/1", ("org/name", "Q8_0", "refs/pr/1")),
    ],
)
def test_parse(reference: str, parsed: tuple[str, str, str | None]) -> None:
    model = hub.parse(reference)
    assert hub.matches(reference) and (model.name, model.quant, model.revision) == parsed


@pytest.mark.parametrize(
    "reference", ["name", "a/b/c", "./a/b", "../a", "/a/b", "org/name:", "org/na me", "pypi:x==1#a/b", "", "a/../b"]
)
def test_not_a_hub_id(reference: str) -> None:
    assert not hub.matches(reference)


def test_choose_ambiguous_or_missing_quantization() -> None:
    with pytest.raises(ModelReferenceError, match=r"Q4_K_M, Q4_K_S, Q8_0[\s\S]*acme/x:Q4_K_M"):
        choose("acme/x", GGUF, "")
    with pytest.raises(ModelReferenceError, match="did you mean 'Q4_K_"):
        choose("acme/x", GGUF, "Q4_K")
    with pytest.raises(DownloadError, match="neither safetensors nor GGUF"):
        choose("acme/x", ["README.md"], "")


def test_choose_takes_all_parts_and_shards() -> None:
    parts = [f"Q8_0/x-Q8_0-0000{i}-of-00002.gguf" for i in (1, 2)]
    assert choose("acme/x", [*parts, "mmproj-x-Q8_0.gguf"], "Q8_0").files == tuple(parts)
    assert choose("acme/x", parts, "").main == parts[0]
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = "model.safetensors.index.json"
    assert set(choose("acme/x", [*shards, index, "../evil.json", "/etc/x.json"], "").files) == {*shards, index}
