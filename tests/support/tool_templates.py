"""Chat templates of our own in the style of this year's published ones: the same tags, turns and Jinja."""

LAST_QUESTION = r"""{%- set ns = namespace(last=-1) -%}
{%- for turn in messages -%}
    {%- if turn.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
"""
THOUGHTS = r"""{%- set thoughts = '' -%}
{%- set said = turn.content -%}
{%- if turn.reasoning_content is string -%}
    {%- set thoughts = turn.reasoning_content -%}
{%- elif '</think>' in said -%}
    {%- set thoughts = said.split('</think>')[0].split('<think>')[-1].strip('\n') -%}
    {%- set said = said.split('</think>')[-1].lstrip('\n') -%}
{%- endif -%}
"""
_GLM = r"""[gMASK]<sop>
{%- if tools -%}
<|system|>
Functions, in <tools></tools>:
<tools>
{% for tool in tools %}
{{ tool | tojson(ensure_ascii=False) }}
{% endfor %}
</tools>

A call is
<tool_call>{its name}HEAD<arg_key>{a key}</arg_key>GAP<arg_value>{its value}</arg_value>GAP
...
</tool_call>{%- endif -%}
LAST{% for turn in messages %}
{%- if turn.role == 'user' -%}<|user|>
{{ turn.content }}
{%- elif turn.role == 'assistant' -%}
<|assistant|>THOUGHTS
{%- if loop.index0 > ns.last and thoughts -%}
{{ 'BREAK<think>' + thoughts.strip() + '</think>' }}
{%- else -%}
{{ 'BREAK<think></think>' }}
{%- endif -%}
{%- if said.strip() -%}
{{ '\n' + said.strip() }}
{%- endif -%}
{% if turn.tool_calls %}
{% for call in turn.tool_calls %}
{%- if call.function %}
    {%- set call = call.function %}
{%- endif %}
CALL{% endfor %}
{% endif %}
{%- elif turn.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
    {{- '<|observation|>' }}
{%- endif %}
{{- '\n<tool_response>\n' + turn.content + '\n</tool_response>' }}
{%- elif turn.role == 'system' -%}
<|system|>
{{ turn.content }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    <|assistant|>OPENED
{%- endif -%}
"""
_GLM_CALL = r"""{{ '\n<tool_call>' + call.name }}
{% set values = call.arguments or {} %}
{% for key, value in values.items() %}
<arg_key>{{ key }}</arg_key>
<arg_value>{{ value | tojson(ensure_ascii=False) if value is not string else value }}</arg_value>
{% endfor %}
</tool_call>"""
_GLM_DENSE_CALL = r"""{{- '<tool_call>' + call.name -}}
{% set values = call.arguments or {} %}{% for key, value in values.items() -%}
<arg_key>{{ key }}</arg_key><arg_value>{{ value if value is string else value | tojson }}</arg_value>
{%- endfor %}</tool_call>"""


def _glm(call: str, gap: str, opened: str) -> str:
    """`gap` is what stands between tags."""
    parts = {"LAST": LAST_QUESTION, "THOUGHTS": THOUGHTS, "CALL": call, "HEAD": gap, "GAP": gap, "OPENED": opened}
    parts["BREAK"] = gap and r"\n"
    text = _GLM
    for place, part in parts.items():
        text = text.replace(place, part)
    return text


GLM = _glm(
    _GLM_CALL, "\n", r"{{- '\n<think></think>' if enable_thinking is defined and not enable_thinking else '' -}}"
)
GLM_DENSE = _glm(
    _GLM_DENSE_CALL, "", r"{{- '</think>' if enable_thinking is defined and not enable_thinking else '<think>' -}}"
)

MINIMAX = (
    r"""{%- set begin, end = '<minimax:tool_call>', '</minimax:tool_call>' -%}
{%- set rules, turns = none, messages -%}
{%- if messages and messages[0].role == 'system' -%}
    {%- set rules, turns = messages[0].content, messages[1:] -%}
{%- endif -%}
"""
    + LAST_QUESTION.replace("in messages", "in turns")
    + r"""{{- ']~!b[' ~ ']~b]system' ~ '\n' ~ (rules or 'You are Quill.') }}
{%- if tools -%}
    {{- '\n\n# Tools\n<tools>\n' }}
    {%- for tool in tools %}
<tool>{{ tool.function | tojson | string }}</tool>
    {%- endfor %}
    {{- '\n</tools>\n\nCalls are written so:\n' ~ begin }}
<invoke name="a-tool">
<parameter name="a-key">its value</parameter>
...
</invoke>
{{- '\n' ~ end }}
{%- endif -%}
{{- '[e~[\n' }}
{%- for turn in turns -%}
    {%- if turn.role == 'assistant' -%}
        {{- ']~b]ai' ~ '\n' }}
        """
    + THOUGHTS
    + r"""
        {%- if thoughts and loop.index0 > ns.last -%}
            {{- '<think>' ~ '\n' ~ thoughts ~ '\n' ~ '</think>' ~ '\n\n' }}
        {%- endif -%}
        {{- said }}
        {%- if turn.tool_calls -%}
            {{- '\n' ~ begin ~ '\n' }}
            {%- for call in turn.tool_calls -%}
                {%- set call = call.function or call %}
                {{- '<invoke name="' + call.name + '">' }}
                {%- for key, value in call.arguments.items() %}
                    {{- '\n<parameter name="' + key + '">' }}
                    {{- value | tojson(ensure_ascii=False) if value is not string else value }}
                    {{- '</parameter>' }}
                {%- endfor %}
                {{- '\n</invoke>' ~ '\n' }}
            {%- endfor -%}
            {{- end }}
        {%- endif -%}
        {{- '[e~[' ~ '\n' }}
    {%- elif turn.role == 'tool' -%}
        {%- if loop.first or turns[loop.index0 - 1].role != 'tool' -%}
            {{- ']~b]tool' }}
        {%- endif -%}
        {{- '\n<response>' ~ turn.content ~ '</response>' }}
        {%- if loop.last or turns[loop.index0 + 1].role != 'tool' -%}
            {{- '[e~[\n' -}}
        {%- endif -%}
    {%- elif turn.role == 'user' -%}
        {{- ']~b]user' ~ '\n' ~ turn.content ~ '[e~[' ~ '\n' }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- ']~b]ai' ~ '\n' ~ '<think>' ~ '\n' }}
{%- endif -%}
"""
)

# Granite 3 offers tools, and writes every turn's content as it is: no turn has calls for it.
GRANITE3 = r"""{%- if tools and not available_tools -%}
    {%- set available_tools = tools -%}
{%- endif -%}
{%- if messages[0]['role'] == 'system' %}
    {%- set rules, turns = messages[0]['content'], messages[1:] %}
{%- else %}
    {%- set rules, turns = 'It is ' + strftime_now('%B %d, %Y') + '.', messages %}
    {%- if available_tools %}
        {%- set rules = rules + ' To use tools, write only <|tool_call|> and a JSON list of them.' %}
    {%- endif %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + rules + '<|end_of_text|>\n' }}
{%- if available_tools %}
    {{- '<|start_of_role|>available_tools<|end_of_role|>' + available_tools | tojson(indent=4) + '<|end_of_text|>\n' }}
{%- endif %}
{%- for turn in turns %}
    {{- '<|start_of_role|>' + turn['role'] + '<|end_of_role|>' + turn['content'] + '<|end_of_text|>\n' }}
    {%- if loop.last and add_generation_prompt %}
        {{- '<|start_of_role|>assistant<|end_of_role|>' }}
    {%- endif %}
{%- endfor %}
"""
# Granite 3.3 asks for thoughts and a response between tags, in words alone.
GRANITE33 = GRANITE3.replace(
    "    {%- if available_tools %}\n",
    """    {%- if thinking %}
        {%- set rules = rules + ' Think between <think></think>, and respond between <response></response>.' %}
    {%- elif available_tools %}
""",
)
GRANITE4 = r"""{%- set before = 'Functions:\n<tools>' %}
{%- set after = '\n</tools>\n\nA call is\n<tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call>.' %}
{%- set ns = namespace(tools='') %}
{%- if tools %}
    {%- for tool in tools %}
        {%- set ns.tools = ns.tools + '\n' + (tool | tojson) %}
    {%- endfor %}
    {%- set ns.tools = before + ns.tools + after %}
{%- endif %}
{%- if messages[0].role == 'system' %}
    {{- '<|start_of_role|>system<|end_of_role|>' + messages[0].content + ('\n\n' + ns.tools if tools else '') }}
    {{- '<|end_of_text|>\n' }}
{%- elif tools %}
    {{- '<|start_of_role|>system<|end_of_role|>' + ns.tools + '<|end_of_text|>\n' }}
{%- endif %}
{%- for turn in messages %}
    {%- if turn.role == 'user' or (turn.role == 'system' and not loop.first) %}
        {{- '<|start_of_role|>' + turn.role + '<|end_of_role|>' + turn.content + '<|end_of_text|>\n' }}
    {%- elif turn.role == 'assistant' %}
        {{- '<|start_of_role|>assistant<|end_of_role|>' + turn.content }}
        {%- for call in turn.tool_calls or [] %}
            {%- if (loop.first and turn.content) or not loop.first %}
                {{- '\n' }}
            {%- endif %}
            {%- set call = call.function or call %}
            {{- '<tool_call>\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|end_of_text|>\n' }}
    {%- elif turn.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|start_of_role|>user<|end_of_role|>' }}
        {%- endif %}
        {{- '\n<tool_response>\n' + turn.content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|end_of_text|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_of_role|>assistant<|end_of_role|>' }}
{%- endif %}
"""

# Nemotron Nano 2 thinks unless a text says /no_think, which is left out of the system's.
NEMOTRON2 = r"""{%- set ns = namespace(thinking=true) -%}
{%- for turn in messages if turn.role in ('system', 'user') -%}
    {%- if '/no_think' in turn.content -%}
        {%- set ns.thinking = false -%}
    {%- elif '/think' in turn.content -%}
        {%- set ns.thinking = true -%}
    {%- endif -%}
{%- endfor -%}
{%- set rules = messages[0].content if messages[0].role == 'system' else '' -%}
{{- '<SPECIAL_10>System\n' + rules.replace('/no_think', '').replace('/think', '').strip() }}
{%- if tools %}
    {{- '\n\nYou may use these tools:\n<AVAILABLE_TOOLS>[' }}
    {%- for tool in tools %}
        {{- (tool.function or tool) | tojson + (', ' if not loop.last else '') }}
    {%- endfor %}
    {{- ']</AVAILABLE_TOOLS>\n\nCalls are\n<TOOLCALL>[{"name": "tool1", "arguments": "args1"}, ...]</TOOLCALL>' }}
{%- endif %}
{{- '\n' }}
{%- for turn in messages %}
    {%- if turn.role == 'user' %}
        {{- '<SPECIAL_11>User\n' + turn.content.replace('/no_think', '').replace('/think', '').strip() + '\n' }}
    {%- elif turn.role == 'assistant' %}
        {{- '<SPECIAL_11>Assistant\n' }}
        {{- '<think>\n' + turn.reasoning_content + '\n</think>\n\n' if turn.reasoning_content else '<think></think>' }}
        {{- turn.content.strip() }}
        {%- if turn.tool_calls %}
            {{- '<TOOLCALL>[' }}
            {%- for call in turn.tool_calls %}
                {%- set call = call.function or call %}
                {{- '{"name": "' + call.name + '", "arguments": ' }}
                {{- call.arguments if call.arguments is string else call.arguments | tojson }}
                {{- '}' + (', ' if not loop.last else '') }}
            {%- endfor %}
            {{- ']</TOOLCALL>' }}
        {%- endif %}
        {{- '\n<SPECIAL_12>\n' }}
    {%- elif turn.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<SPECIAL_11>User\n<TOOL_RESPONSE>[' }}
        {%- endif %}
        {{- turn.content }}
        {%- set ends = loop.last or messages[loop.index0 + 1].role != 'tool' %}
        {{- ']</TOOL_RESPONSE>\n' if ends else ', ' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<SPECIAL_11>Assistant\n' + ('<think>\n' if ns.thinking else '<think></think>') }}
{%- endif %}
"""

# DeepSeek's templates write calls and know no tools: these are told of in the system's text.
_DEEPSEEK = r"""{% if not thinking is defined %}{% set thinking = enable_thinking | default(false) %}{% endif %}
{%- set ns = namespace(rules='', calls=false, asked=false, tool=false) -%}
{%- for turn in messages -%}
    {%- if turn['role'] == 'system' -%}
        {%- set ns.rules = ns.rules + ('\n\n' if ns.rules else '') + turn['content'] -%}
    {%- endif -%}
{%- endfor -%}
{{ bos_token }}{{ ns.rules }}
{%- for turn in messages -%}
    {%- if turn['role'] == 'user' -%}
        {%- set ns.tool, ns.calls, ns.asked = false, false, true -%}
        {{ '<｜User｜>' + turn['content'] }}
    {%- elif turn['role'] == 'assistant' and turn['tool_calls'] is defined and turn['tool_calls'] is not none -%}
        {%- if ns.asked -%}{{ '<｜Assistant｜>SILENT' }}{%- endif -%}
        {%- set ns.asked, ns.calls, ns.tool = false, false, false -%}
        {%- for call in turn['tool_calls'] -%}
            {%- if not ns.calls -%}
                {{ '' if turn['content'] is none else turn['content'] }}{{ '<｜tool▁calls▁begin｜>' }}
            {%- else -%}
                {{ 'GAP' }}
            {%- endif -%}
            {{ CALL }}
            {%- set ns.calls = true -%}
        {%- endfor -%}
        {{ '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}
    {%- elif turn['role'] == 'assistant' -%}
        {%- if ns.asked -%}{{ '<｜Assistant｜>SILENT' }}{%- endif -%}
        {%- set ns.asked, ns.tool = false, false -%}
        {{ turn['content'].split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}
    {%- elif turn['role'] == 'tool' -%}
        {%- set ns.asked, ns.tool = false, true -%}
        {{ '<｜tool▁output▁begin｜>' + turn['content'] + '<｜tool▁output▁end｜>' }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and ns.asked and not ns.tool -%}{{ '<｜Assistant｜>OPENED' }}{%- endif %}
"""
_CALL31 = (
    "'<｜tool▁call▁begin｜>' + call['function']['name'] + '<｜tool▁sep｜>' + call['function']['arguments'] + "
    "'<｜tool▁call▁end｜>'"
)
_CALL3 = (
    r"'<｜tool▁call▁begin｜>' + call['type'] + '<｜tool▁sep｜>' + call['function']['name'] + '\n' + '```json' + '\n' + "
    r"call['function']['arguments'] + '\n' + '```' + '<｜tool▁call▁end｜>'"
)
_SWITCH = "' + ('<think>' if thinking else '</think>') + '"
DEEPSEEK = (
    _DEEPSEEK.replace("SILENT", "</think>").replace("OPENED", _SWITCH).replace("GAP", "").replace("CALL", _CALL31)
)
DEEPSEEK_V3 = _DEEPSEEK.replace("SILENT", "").replace("OPENED", "").replace("GAP", r"\n").replace("CALL", _CALL3)
