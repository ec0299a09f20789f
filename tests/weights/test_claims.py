"""A model takes exactly its tensors."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmcore.errors import CheckpointError
from llmcore.weights import FORMATS, Checkpoint, Tensor, TokenizerSource, claim
from llmcore.weights.mapping import MappedFile


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    file = tmp_path / "weights"
    file.write_bytes(bytes(1024))
    mapping = MappedFile(file)
    shapes = {"layers.0.q.weight": (8, 4), "layers.0.k.weight": (4, 4), "norm.weight": (4,)}
    tensors = {name: Tensor(name, shape, FORMATS["F32"], mapping, 64) for name, shape in shapes.items()}
    return Checkpoint(file, "test", {}, tensors, TokenizerSource("none"), files=(mapping,))


WANTED = {"norm.weight": (4,), "layers.0.q.weight": (8, 4), "layers.0.k.weight": (4, 4)}


def test_the_claimed_tensors_come_in_the_models_order(checkpoint: Checkpoint) -> None:
    found = claim(checkpoint, WANTED)
    assert list(found) == list(WANTED)
    assert all(found[name] is checkpoint.tensors[name] for name in WANTED)


def test_a_missing_tensor_is_named_with_the_nearest_ones(checkpoint: Checkpoint) -> None:
    wanted = {name.replace("q.", "q_proj."): shape for name, shape in WANTED.items()}
    with pytest.raises(CheckpointError) as caught:
        claim(checkpoint, wanted)
    assert caught.value.tensor == "layers.0.q_proj.weight" and caught.value.file == checkpoint.path
    assert "missing; shape wanted [8, 4]" in str(caught.value)
    assert "nearest: layers.0.q.weight" in str(caught.value)


def test_many_missing_tensors_are_counted(checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match=r"'x0': missing, as are x1, x2, x3 and 6 more"):
        claim(checkpoint, WANTED | {f"x{i}": (1,) for i in range(10)})


def test_a_surplus_tensor_is_refused_unless_ignorable(checkpoint: Checkpoint) -> None:
    wanted = {name: shape for name, shape in WANTED.items() if name != "norm.weight"}
    with pytest.raises(CheckpointError, match=r"no place for it; its shape is \[4\].*byte 64") as caught:
        claim(checkpoint, wanted)
    assert caught.value.tensor == "norm.weight"
    assert list(claim(checkpoint, wanted, [r"norm\..*"])) == list(wanted)
    with pytest.raises(CheckpointError, match="no place"):
        claim(checkpoint, wanted, ["norm"])  # the whole name must match


def test_a_wrong_shape_names_both(checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match=r"'norm.weight': shape is \[4\], the config asks for \[5\]"):
        claim(checkpoint, {**WANTED, "norm.weight": (5,)})


def test_a_format_that_no_op_reads_is_refused(checkpoint: Checkpoint) -> None:
    mapping = checkpoint.files[0]
    tensors = {**checkpoint.tensors, "norm.weight": Tensor("norm.weight", (4,), FORMATS["I8"], mapping, 0)}
    checkpoint.tensors = tensors
    with pytest.raises(CheckpointError, match=r"'norm.weight': is stored as I8.*\n.*Q4_K"):
        claim(checkpoint, WANTED)
