"""The graph of one step, by what is wanted of it: logits, greedy tokens, or hidden states."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcore.graph.graph import Graph, Value
from llmcore.graph.inputs import input_shapes
from llmcore.layers import Decoder
from llmcore.model_spec import ModelSpec

if TYPE_CHECKING:
    from llmcore.engine.sizes import Sizes


def model_graph(spec: ModelSpec, sizes: Sizes, *, taps: bool = False) -> Graph:
    """The graph of one step, with output ``logits``; with ``taps`` each block's result is an output too."""
    graph = Graph(input_shapes(sizes.limits.blocks))
    hidden: dict[str, Value] = {}
    logits = Decoder(spec, sizes.context, sizes.page_size)(graph, hidden)
    logits.dtype = "f32"  # whatever activations are: the sampler's ops read them
    graph.outputs = {"logits": logits, **(hidden if taps else {})}
    return graph


def with_argmax(graph: Graph) -> Graph:
    """The same step with output ``ids``, the greedy next tokens, in place of logits."""
    greedy = graph.fork()
    logits = greedy.outputs.pop("logits")
    with greedy.scope("lm_head"):
        greedy.outputs["ids"] = greedy.op("argmax", logits=logits)
    return greedy


def with_hidden(graph: Graph) -> Graph:
    """The same step with output ``hidden``, the normed states that the classifier reads, in place of logits."""
    hidden = graph.fork()
    logits = hidden.outputs["logits"]
    classifier = next(node for node in hidden.nodes if logits in node.outputs.values())
    hidden.nodes.remove(classifier)
    hidden.outputs = {"hidden": classifier.args["x"]}
    return hidden
