"""Chat templates of our own in the style of Kimi K2 and Qwen3.5, which think before they call."""

from tests.support.tool_templates import LAST_QUESTION, THOUGHTS

# Kimi K2's calls have ids of their own, a name and a number, which results repeat.
KIMI = (
    LAST_QUESTION
    + r"""{%- macro calls_of(turn) -%}
<|tool_calls_section_begin|>
{%- for call in turn.tool_calls -%}
<|tool_call_begin|>{{ call.id }}<|tool_call_argument_begin|>
{%- if call.function.arguments is string -%}
{{ call.function.arguments }}
{%- else -%}
{{ call.function.arguments | tojson }}
{%- endif -%}
<|tool_call_end|>
{%- endfor -%}
<|tool_calls_section_end|>
{%- endmacro -%}
{%- if tools -%}
<|im_system|>tool_declare<|im_middle|>{{ tools | tojson(separators=(',', ':')) }}<|im_end|>
{%- endif -%}
{%- for turn in messages -%}
    {%- if turn.role == 'assistant' -%}
<|im_assistant|>assistant<|im_middle|>
        {%- if loop.index0 > ns.last -%}
<think>{{ turn.reasoning_content or '' }}</think>
        {%- else -%}
<think></think>
        {%- endif -%}
{{ turn.content }}
        {%- if turn.tool_calls -%}{{ calls_of(turn) }}{%- endif -%}
    {%- elif turn.role == 'tool' -%}
<|im_system|>{{ turn.name }}<|im_middle|>## Return of {{ turn.tool_call_id }}
{{ turn.content }}
    {%- else -%}
<|im_{{ turn.role }}|>{{ turn.role }}<|im_middle|>{{ turn.content }}
    {%- endif -%}
<|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_assistant|>assistant<|im_middle|>
{%- endif -%}
"""
)

# Qwen3.5 thinks before calls whose parameters stand between tags.
QWEN35 = (
    LAST_QUESTION
    + r"""{%- if tools -%}
    {{- '<|im_start|>system\n# Tools\n\n<tools>' }}
    {%- for tool in tools -%}{{- '\n' + tool | tojson }}{%- endfor -%}
    {{- '\n</tools>\n\nA call is\n<tool_call>\n<function=a_name>\n<parameter=a_key>\nits value\n</parameter>\n' }}
    {{- '</function>\n</tool_call><|im_end|>\n' }}
{%- endif -%}
{%- for turn in messages -%}
    {%- if turn.role == 'assistant' -%}
        """
    + THOUGHTS
    + r"""
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > ns.last -%}
            {{- '<think>\n' + thoughts + '\n</think>\n\n' }}
        {%- endif -%}
        {{- said }}
        {%- for call in turn.tool_calls or [] -%}
            {%- set call = call.function or call -%}
            {{- ('\n\n' if said.strip() else '') if loop.first else '\n' }}
            {{- '<tool_call>\n<function=' + call.name + '>\n' }}
            {%- for key, value in call.arguments.items() -%}
                {%- set value = value if value is string else value | tojson -%}
                {{- '<parameter=' + key + '>\n' + value + '\n</parameter>\n' }}
            {%- endfor -%}
            {{- '</function>\n</tool_call>' }}
        {%- endfor -%}
        {{- '<|im_end|>\n' }}
    {%- elif turn.role == 'tool' -%}
        {{- '<|im_start|>user\n<tool_response>\n' + turn.content + '\n</tool_response><|im_end|>\n' }}
    {%- else -%}
        {{- '<|im_start|>' + turn.role + '\n' + turn.content + '<|im_end|>\n' }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n<think>\n' }}
    {%- if enable_thinking is defined and not enable_thinking -%}{{- '\n</think>\n\n' }}{%- endif -%}
{%- endif -%}
"""
)
