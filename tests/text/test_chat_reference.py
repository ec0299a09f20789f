"""Chat templates of real models render as transformers renders them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmcore.errors import ChatTemplateError
from llmcore.text.chat import ChatTemplate
from llmcore.text.tokenizer import Tokenizer

ROLES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
FAMILIES = (
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "Qwen3-Coder",
    "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.2-3B-Instruct",
    "meta-llama-Llama-3.3-70B-Instruct",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "HuggingFaceTB-SmolLM3-3B",
)
LLAMA2 = (  # in the manner of Llama 2's: the system prompt goes into the first turn, roles must alternate
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}{% for message in rest %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{% set content = message['content'] %}"
    "{% if loop.index0 == 0 and system != false %}"
    "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + content %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant.<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CALL = {"type": "function", "id": "call_1234", "function": {"name": "weather", "arguments": {"city": "Zürich", "n": 3}}}
TALKS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": " Hello <b>there</b> "}],
    "several": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": 'Hi {x} "ü"'},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello! "},
        {"role": "user", "content": "Bye\n"},
    ],
    "wrong order": [{"role": "assistant", "content": "Hello"}, {"role": "system", "content": "x"}],
    "tools": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "weather", "tool_call_id": "call_1234", "content": "sunny"},
    ],
}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "where"}},
    "required": ["city"],
}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": PARAMETERS}}]


def by_transformers(source: str, messages: list[dict[str, Any]], **variables: Any) -> str | None:
    """What transformers makes of it; None where the template refuses."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, _ = render_jinja_template(conversations=[messages], chat_template=source, **variables, **ROLES)
    except (TemplateError, TypeError):
        return None
    return str(texts[0])


def compare(source: str) -> int:
    """Compares all conversations; returns how many rendered."""
    template, rendered = ChatTemplate(source, ROLES), 0
    for messages in TALKS.values():
        for tools in (None, TOOLS):
            for prompt in (True, False):
                expected = by_transformers(source, messages, tools=tools, add_generation_prompt=prompt)
                if expected is None:
                    with pytest.raises(ChatTemplateError):
                        template.render(messages, tools=tools, add_generation_prompt=prompt)
                else:
                    assert template.render(messages, tools=tools, add_generation_prompt=prompt) == expected
                    rendered += 1
    return rendered


@pytest.mark.parametrize("source", [LLAMA2, CHATML], ids=["llama-2", "chatml"])
def test_as_transformers(source: str) -> None:
    pytest.importorskip("transformers")
    assert compare(source) >= 8


@pytest.mark.parametrize("name", FAMILIES)
def test_families_as_transformers(llama_cpp_models: Path, name: str) -> None:
    pytest.importorskip("transformers")
    assert compare((llama_cpp_models / f"{name}.jinja").read_text("utf-8")) >= 4


@pytest.mark.slow
def test_every_template_as_transformers(llama_cpp_models: Path) -> None:
    pytest.importorskip("transformers")
    sources = sorted(llama_cpp_models.glob("*.jinja"))
    # One calls tojson on a generator, which transformers' jinja refuses and ours makes a list.
    assert sum(compare(path.read_text("utf-8")) for path in sources if "deepseek-r1" not in path.stem) > 600


@pytest.mark.parametrize(
    ("vocabulary_name", "template"),
    [
        ("qwen2", "Qwen-Qwen2.5-7B-Instruct"),
        ("qwen2", "Qwen-Qwen3-0.6B"),
        ("llama-bpe", "meta-llama-Llama-3.1-8B-Instruct"),
        ("llama-spm", None),
    ],
)
def test_ids_are_those_of_the_rendered_text(
    llama_cpp_models: Path, vocabulary: Callable[[str], Tokenizer], vocabulary_name: str, template: str | None
) -> None:
    tokenizer = vocabulary(vocabulary_name)
    source = LLAMA2 if template is None else (llama_cpp_models / f"{template}.jinja").read_text("utf-8")
    roles = ROLES if template is None else {"bos_token": "<|begin_of_text|>"}
    chat = ChatTemplate(source, roles)
    for messages in (TALKS["one"], TALKS["several"]):
        ids = chat.encode(messages, tokenizer)
        assert ids == tokenizer.encode(chat.render(messages), add_special=False, parse_special=True)
        assert not tokenizer.special_ids.isdisjoint(ids)
    hostile = [{"role": "user", "content": "".join(list(tokenizer.special_texts())[:20])}]
    wanted, found = (chat.encode(each, tokenizer) for each in (TALKS["one"], hostile))
    special = tokenizer.special_ids
    assert [each for each in found if each in special] == [each for each in wanted if each in special]
    assert hostile[0]["content"] in tokenizer.decode(found)
