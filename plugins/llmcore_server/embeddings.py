"""``/v1/embeddings``: vectors for texts."""

from __future__ import annotations

import base64
from typing import Any

from starlette.responses import JSONResponse

from llmcore.engine.embedding import Array
from llmcore_server.fields import EmbeddingFields
from llmcore_server.service import Service


async def embed(service: Service, fields: EmbeddingFields) -> JSONResponse:
    """A vector of length 1 for each text, one after the other, between the steps of answers."""
    service.check_model(fields.model)
    with service.admitted(1) as llm:  # they never are more than one text under way
        made = [await llm.embed(text, fields.pooling or "mean") for text in fields.texts]
    tokens = sum(count for _, count in made)
    data = [_entry(index, vector, fields.encoding_format == "base64") for index, (vector, _) in enumerate(made)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": fields.model, "usage": usage})


def _entry(index: int, vector: Array, packed: bool) -> dict[str, Any]:
    values = base64.b64encode(vector.astype("<f4").tobytes()).decode() if packed else vector.tolist()
    return {"object": "embedding", "index": index, "embedding": values}
