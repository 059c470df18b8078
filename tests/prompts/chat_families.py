"""Tokenizer folders and chat templates of the kinds that model families are published with.

Templates are shortened only in branches that no message of a training set reaches (tools,
documents, images).
"""

import json
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "USER: What is the answer? ASSISTANT: A. one",
    "Question: which of these? A. one B. two C. three D. four Answer: B",
    "system user assistant model [INST] Be brief. [/INST] think start end of turn header",
    "The pipe is made of copper, and the bridge is made of oak & steel.",
] * 20

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif"
    " %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{"
    " raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token"
    " }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content"
    " }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n'"
    " }}{% endif %}"
)
LLAMA32 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] \
| trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' +"
    " '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.last_query_index == messages|length - 1 and message.role == "user" %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in message.content %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
            {%- set reasoning_content = message.content.split('</think>')[0].rstrip('\\n')\
.split('<think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content\
.strip('\\n') + '\\n</think>\\n\\n' }}
                {{- content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
# The prompt always opens a block of thoughts, which a turn without thoughts closes.
QWEN3_THINKING = QWEN3.split("{%- if add_generation_prompt %}")[0] + (
    "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n<think>\\n' }}\n{%-"
    " endif %}\n"
)
# The opposite: the prompt writes an empty thinking block unless thinking is on; turns have none.
SHUT = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
SMOLLM3 = """{%- if enable_thinking is not defined -%}
{%- set enable_thinking = true -%}
{%- endif -%}
{{- "<|im_start|>system\\n## Metadata\\n\\n" -}}
{%- set today = strftime_now("%d %B %Y") -%}
{{- "Today Date: " ~ today ~ "\\n" -}}
{{- "Reasoning Mode: " + ("/think" if enable_thinking else "/no_think") + "<|im_end|>\\n" -}}
{%- for message in messages -%}
    {%- if message.role == "user" -%}
        {{ "<|im_start|>" + message.role + "\\n"  + message.content + "<|im_end|>\\n" }}
    {%- elif message.role == "assistant" -%}
        {% generation %}
        {%- if enable_thinking -%}
            {{ "<|im_start|>assistant\\n" + message.content.lstrip("\\n") + "<|im_end|>\\n" }}
        {%- else -%}
            {{ "<|im_start|>assistant\\n" + "<think>\\n\\n</think>\\n" + message.content\
.lstrip("\\n") + "<|im_end|>\\n" }}
        {%- endif -%}
        {% endgeneration %}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {%- if enable_thinking -%}
        {{ "<|im_start|>assistant\\n" }}
    {%- else -%}
        {{ "<|im_start|>assistant\\n" + "<think>\\n\\n</think>\\n"  }}
    {%- endif -%}
{%- endif -%}
"""
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') !="
    " (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate"
    " user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% endif"
    " %}{% endfor %}"
)
MISTRAL_SPACED = MISTRAL.replace(
    "{{ message['content'] + eos_token}}", "{{ ' ' + message['content'] + eos_token }}"
)
TEKKEN = MISTRAL.replace("'[INST] '", "'[INST]'").replace("' [/INST]'", "'[/INST]'")
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System"
    " role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate"
    " user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set"
    " role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n'"
    " }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' +"
    " message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] +"
    " '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI4 = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '<|im_sep|>' +"
    " message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
GLM4 = (
    "[gMASK]<sop>{% for item in messages %}{{ '<|' + item.role + '|>\n' + item.content"
    " }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GLM45 = """[gMASK]<sop>
{%- for m in messages -%}
{%- if m.role == 'user' -%}<|user|>
{{ m.content }}
{{- '/nothink' if (enable_thinking is defined and not enable_thinking and not \
m.content.endswith("/nothink")) else '' -}}
{%- elif m.role == 'assistant' -%}
<|assistant|>
{{ '\\n<think></think>' }}
{%- if m.content.strip() -%}
{{ '\\n' + m.content.strip() }}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    <|assistant|>{{- '\\n<think></think>' if (enable_thinking is defined and not \
enable_thinking) else '' -}}
{%- endif -%}
"""
DEEPSEEK = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false"
    " %}{% endif %}{{ bos_token }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' +"
    " message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
DEEPSEEK_V3 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{"
    " '<｜User｜>' + message['content'] }}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{% set content = message['content'] %}{% if"
    " '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}{{ '<｜Assistant｜>' +"
    " content + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
DEEPSEEK_R1 = DEEPSEEK_V3.replace("{{ '<｜Assistant｜>' }}", "{{ '<｜Assistant｜><think>\n' }}")
TULU = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<|system|>\n' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'assistant' %}{% if not loop.last %}{{ '<|assistant|>\n' +"
    " message['content'] + eos_token + '\n' }}"
    "{% else %}{{ '<|assistant|>\n' + message['content'] + eos_token }}{% endif %}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
GRANITE = (
    "{%- if messages[0]['role'] != 'system' %}{{-"
    " '<|start_of_role|>system<|end_of_role|>Knowledge Cutoff Date: April 2024.\n"
    "Today\\'s Date: ' + strftime_now('%B %d, %Y') + '.<|end_of_text|>\n' }}{%- endif %}"
    "{%- for message in messages %}{{- '<|start_of_role|>' + message['role'] +"
    " '<|end_of_role|>' + message['content'] + "
    "'<|end_of_text|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"
)
HARMONY = (
    "{{- '<|start|>system<|message|>Current date: ' + strftime_now('%Y-%m-%d') + '<|end|>'"
    " }}{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}{{-"
    " '<|start|>assistant<|channel|>final<|message|>' + message.content }}"
    "{{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
    "{%- else -%}{{- '<|start|>' + message.role + '<|message|>' + message.content +"
    " '<|end|>' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}\n"
)
FALCON = (
    "{% for message in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}{% if"
    " message['role'] == 'system' %}"
    "{{ message['content'] }}{% elif message['role'] == 'user' %}{{ '<|user|>\n' +"
    " message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] +"
    " eos_token }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '\n' + '<|assistant|>\n' }}{% endif"
    " %}{% endfor %}"
)
# Text before and after the tags, as in files with a licence: white space at both ends.
INDENTED = (
    "  {% for m in messages %}\n"
    + "[{{ m.role }}] {{ m.content }}\n"
    + "  {% endfor %}\n{% if add_generation_prompt %}[assistant]{% endif %}\n"
)

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _folder(path: Path, model_type: str, settings: dict[str, Any], template: str | None) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(
        json.dumps({"model_type": model_type, "eos_token_id": 2, "vocab_size": 4096})
    )
    if template is not None:
        settings = settings | {"chat_template": template}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@lru_cache
def _sentencepiece_model(extra: tuple[str, ...]) -> bytes:
    made = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=made,
        model_type="bpe",
        vocab_size=480,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=list(extra),
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return made.getvalue()


def sentencepiece_folder(
    path: Path,
    template: str | None,
    legacy: bool | None,
    model_type: str = "llama",
    **settings: Any,
) -> Path:
    """Llama-2's: tokenizer.model alone, with `legacy` in its settings."""
    names = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    given = {} if legacy is None else {"legacy": legacy}
    _folder(path, model_type, names | {"add_bos_token": True} | given | settings, template)
    (path / "tokenizer.model").write_bytes(_sentencepiece_model(()))
    return path


def converted_folder(
    path: Path, template: str | None, prepend: str | None, tokenizer_class: str, **settings: Any
) -> Path:
    """As tokenizer.json. `prepend`: a Metaspace scheme; None for normalizers that prepend."""
    from transformers import AutoTokenizer

    sentencepiece_folder(path / "spm", None, False)
    state = json.loads(AutoTokenizer.from_pretrained(path / "spm").backend_tokenizer.to_str())
    if prepend is None:
        state["pre_tokenizer"] = None
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        state["normalizer"] = {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace],
        }
    else:
        state["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": prepend,
            "split": False,
        }
    names = {
        "tokenizer_class": tokenizer_class,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    _folder(path, "llama", names | settings, template)
    (path / "tokenizer.json").write_text(json.dumps(state))
    return path


@lru_cache
def _byte_level(pattern: str) -> str:
    tokenizer = Tokenizer(models.BPE())
    split = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=450, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


def byte_level_folder(
    path: Path,
    template: str | None,
    special: list[str],
    eos: str,
    start: str = "",
    plain: tuple[str, ...] = (),
    **settings: Any,
) -> Path:
    """Llama-3's and Qwen's kind of tokenizer.

    Control tokens `special` follow the vocabulary, `plain` ones are not flagged special, and
    `start` precedes every text.
    """
    tokenizer = Tokenizer.from_str(_byte_level(QWEN_PATTERN))
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in plain])
    if start:
        starts = [(token, tokenizer.token_to_id(token)) for token in special if token in start]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*(t for t, _ in starts), "$A"], special_tokens=starts
        )
    _folder(
        path,
        "llama",
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos} | settings,
        template,
    )
    tokenizer.save(str(path / "tokenizer.json"))
    return path


_L3 = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
_QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_THINK = ("<think>", "</think>", "<tool_call>", "<|fim_prefix|>")
_GEMMA = ["<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"]
_GLM = ["<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"]
_DEEPSEEK = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]
_DEEPSEEK_MARKS = (_DEEPSEEK, _DEEPSEEK[1], _DEEPSEEK[0])
_ROLES = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<s>"]


def _llama3(path: Path, template: str, eos: str = "<|eot_id|>") -> Path:
    return byte_level_folder(
        path, template, _L3, eos, "<|begin_of_text|>", bos_token="<|begin_of_text|>"
    )


def _qwen(path: Path, template: str, eos: str = "<|im_end|>") -> Path:
    return byte_level_folder(path, template, _QWEN, eos, plain=_THINK, pad_token="<|endoftext|>")


FAMILIES: dict[str, Any] = {
    "llama-2 legacy": lambda p: sentencepiece_folder(p, LLAMA2, True),
    "llama-2": lambda p: sentencepiece_folder(p, LLAMA2, False),
    "llama-2 legacy, not said": lambda p: sentencepiece_folder(p, LLAMA2, None),
    "llama-2 tokenizer.json": lambda p: converted_folder(
        p, LLAMA2, None, "LlamaTokenizer", legacy=True, add_bos_token=True
    ),
    "llama-2 fast": lambda p: converted_folder(p, LLAMA2, None, "PreTrainedTokenizerFast"),
    "metaspace first": lambda p: converted_folder(p, MISTRAL, "first", "PreTrainedTokenizerFast"),
    "metaspace always": lambda p: converted_folder(p, MISTRAL, "always", "PreTrainedTokenizerFast"),
    "metaspace never": lambda p: converted_folder(p, GEMMA, "never", "PreTrainedTokenizerFast"),
    "mistral legacy": lambda p: sentencepiece_folder(
        p, MISTRAL, True, "mistral", clean_up_tokenization_spaces=False
    ),
    "mistral spaced": lambda p: sentencepiece_folder(
        p, MISTRAL_SPACED, False, "mistral", pad_token="</s>"
    ),
    "mistral without a prefix space": lambda p: sentencepiece_folder(
        p, TEKKEN, False, "mistral", add_prefix_space=False
    ),
    "tekken": lambda p: byte_level_folder(
        p, TEKKEN, ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], "</s>", "<s>", bos_token="<s>"
    ),
    "sentencepiece without BOS": lambda p: sentencepiece_folder(
        p, FALCON, False, add_bos_token=False
    ),
    "sentencepiece, template without BOS": lambda p: sentencepiece_folder(p, FALCON, False),
    "sentencepiece legacy, template without BOS": lambda p: sentencepiece_folder(p, FALCON, True),
    "llama-3": lambda p: _llama3(p, LLAMA3),
    "llama-3 base": lambda p: _llama3(p, LLAMA3, "<|end_of_text|>"),
    "llama-3.2": lambda p: _llama3(p, LLAMA32),
    "qwen2": lambda p: _qwen(p, QWEN2),
    "qwen2 base": lambda p: _qwen(p, QWEN2, "<|endoftext|>"),
    "qwen3": lambda p: _qwen(p, QWEN3),
    "qwen3 base": lambda p: _qwen(p, QWEN3, "<|endoftext|>"),
    "qwen3 thinking": lambda p: _qwen(p, QWEN3_THINKING),
    "thoughts in the prompt only": lambda p: _qwen(p, SHUT),
    "smollm3": lambda p: _qwen(p, SMOLLM3),
    "gemma": lambda p: byte_level_folder(
        p, GEMMA, _GEMMA, "<eos>", "<bos>", ("\n\n", "<td>"), bos_token="<bos>", pad_token="<pad>"
    ),
    "phi-3": lambda p: sentencepiece_folder(p, PHI3, False, add_bos_token=False),
    "phi-3, marks of its own": lambda p: byte_level_folder(p, PHI3, _ROLES, "<|endoftext|>"),
    "phi-4": lambda p: byte_level_folder(p, PHI4, [*_QWEN, "<|im_sep|>"], "<|im_end|>"),
    "glm-4": lambda p: byte_level_folder(p, GLM4, _GLM, "<|endoftext|>", "[gMASK]<sop>"),
    "glm-4.5": lambda p: byte_level_folder(p, GLM45, _GLM, "<|endoftext|>", "", _THINK),
    "deepseek": lambda p: byte_level_folder(p, DEEPSEEK, *_DEEPSEEK_MARKS, bos_token=_DEEPSEEK[0]),
    "deepseek-v3": lambda p: byte_level_folder(
        p, DEEPSEEK_V3, *_DEEPSEEK_MARKS, _THINK, bos_token=_DEEPSEEK[0]
    ),
    "deepseek-r1": lambda p: byte_level_folder(
        p, DEEPSEEK_R1, *_DEEPSEEK_MARKS, _THINK, bos_token=_DEEPSEEK[0]
    ),
    "olmo-2": lambda p: byte_level_folder(
        p, TULU, _ROLES, "<|endoftext|>", bos_token="<|endoftext|>", pad_token="<|endoftext|>"
    ),
    "granite": lambda p: byte_level_folder(
        p,
        GRANITE,
        ["<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"],
        "<|end_of_text|>",
        bos_token="<|end_of_text|>",
    ),
    "gpt-oss": lambda p: byte_level_folder(
        p,
        HARMONY,
        ["<|endoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>"],
        "<|return|>",
    ),
    "falcon": lambda p: byte_level_folder(p, FALCON, ["<|endoftext|>"], "<|endoftext|>"),
    "indented": lambda p: _llama3(p, INDENTED, "<|end_of_text|>"),
}
"""Name -> a function that writes the folder to a path."""
