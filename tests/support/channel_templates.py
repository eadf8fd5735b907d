"""As tool_templates.py, of the families whose answers have channels."""

GPT_OSS = r"""{%- macro kind_of(spec) -%}
    {%- if spec.type == "array" -%}
        {{- (kind_of(spec['items']) if spec['items'] else "any") + "[]" }}
    {%- elif spec.type in ("integer", "number") -%}
        {{- "number" }}
    {%- elif spec.type == "object" and spec.properties -%}
        {{- "{\n" }}
        {%- for key, inner in spec.properties.items() -%}
            {{- key + ("" if key in (spec.required or []) else "?") + ": " + kind_of(inner) + ",\n" }}
        {%- endfor -%}
        {{- "}" }}
    {%- else -%}
        {{- spec.type or "any" }}
    {%- endif -%}
{%- endmacro -%}
{%- macro rules() -%}
    {%- if model_identity is not defined %}
        {%- set model_identity = "You are Quill." %}
    {%- endif %}
    {{- model_identity + "\nToday: " + strftime_now("%Y-%m-%d") + "\n\n" }}
    {%- if reasoning_effort is not defined %}
        {%- set reasoning_effort = "medium" %}
    {%- endif %}
    {{- "Reasoning: " + reasoning_effort + "\n\n# Channels: analysis, commentary, final. Each message has one." }}
{%- endmacro -%}
{{- "<|start|>system<|message|>" + rules() + "<|end|>" }}
{%- set orders, turns = "", messages %}
{%- if messages[0].role in ("developer", "system") %}
    {%- set orders, turns = messages[0].content, messages[1:] %}
{%- endif %}
{%- if orders or tools %}
    {{- "<|start|>developer<|message|>" + orders }}
    {%- if tools -%}
        {{- "\n\n# Tools\n\nnamespace functions {\n" }}
        {%- for tool in tools %}
            {{- "// " + tool.function.description + "\ntype " + tool.function.name + " = (_: " }}
            {{- kind_of(tool.function.parameters) + ") => any;\n" }}
        {%- endfor %}
        {{- "}" }}
    {%- endif -%}
    {{- "<|end|>" }}
{%- endif %}
{%- set last = namespace(name=none) %}
{%- for turn in turns -%}
    {%- if turn.role == 'assistant' -%}
        {%- if "tool_calls" in turn %}
            {%- set call = turn.tool_calls[0].function %}
            {%- if turn.content and turn.thinking %}
                {{- raise_exception("A message with a call has a content or thoughts, not both.") }}
            {%- elif turn.content or turn.thinking %}
                {{- "<|start|>assistant<|channel|>analysis<|message|>" + (turn.content or turn.thinking) + "<|end|>" }}
            {%- endif %}
            {{- "<|start|>assistant to=functions." + call.name + "<|channel|>commentary json<|message|>" }}
            {{- call.arguments|tojson + "<|call|>" }}
            {%- set last.name = call.name %}
        {%- elif loop.last and not add_generation_prompt %}
            {%- if "thinking" in turn %}
                {{- "<|start|>assistant<|channel|>analysis<|message|>" + turn.thinking + "<|end|>" }}
            {%- endif %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + turn.content + "<|return|>" }}
        {%- else %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + turn.content + "<|end|>" }}
            {%- set last.name = none %}
        {%- endif %}
    {%- elif turn.role == 'tool' -%}
        {%- if last.name is none %}
            {{- raise_exception("A tool answers a call.") }}
        {%- endif %}
        {{- "<|start|>functions." + last.name + " to=assistant<|channel|>commentary<|message|>" }}
        {{- turn.content|tojson + "<|end|>" }}
    {%- elif turn.role == 'user' -%}
        {{- "<|start|>user<|message|>" + turn.content + "<|end|>" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|start|>assistant
{%- endif -%}
"""

GEMMA4 = r"""{%- macro noted(value) -%}
    {%- if value is string -%}
        {{- '<|"|>' + value + '<|"|>' -}}
    {%- elif value is boolean -%}
        {{- 'true' if value else 'false' -}}
    {%- elif value is mapping -%}
        {{- '{' -}}
        {%- for key, inner in value | dictsort -%}
            {{- ('' if loop.first else ',') + key + ':' + noted(inner) -}}
        {%- endfor -%}
        {{- '}' -}}
    {%- elif value is sequence -%}
        {{- '[' -}}
        {%- for inner in value -%}
            {{- ('' if loop.first else ',') + noted(inner) -}}
        {%- endfor -%}
        {{- ']' -}}
    {%- else -%}
        {{- value -}}
    {%- endif -%}
{%- endmacro -%}
{%- macro without_thoughts(text) -%}
    {%- set ns = namespace(kept='') -%}
    {%- for part in text.split('<channel|>') -%}
        {%- set ns.kept = ns.kept + part.split('<|channel>')[0] -%}
    {%- endfor -%}
    {{- ns.kept | trim -}}
{%- endmacro -%}
{%- set ns = namespace(before=none) -%}
{%- set thinks = enable_thinking is defined and enable_thinking -%}
{%- set turns = messages -%}
{{ bos_token }}
{%- if thinks or tools or messages[0]['role'] in ['system', 'developer'] -%}
    {{- '<|turn>system\n' + ('<|think|>' if thinks else '') -}}
    {%- if messages[0]['role'] in ['system', 'developer'] -%}
        {{- messages[0]['content'] | trim -}}
        {%- set turns = messages[1:] -%}
    {%- endif -%}
    {%- for tool in tools or [] -%}
        {{- '<|tool>declaration:' + tool['function']['name'] + noted(tool['function']['parameters']) + '<tool|>' -}}
    {%- endfor -%}
    {{- '<turn|>\n' -}}
{%- endif -%}
{%- for turn in turns -%}
    {%- set ns.before = none -%}
    {%- set role = 'model' if turn['role'] == 'assistant' else turn['role'] -%}
    {{- '<|turn>' + role + '\n' -}}
    {%- if role == 'model' and not thinks and loop.last and not add_generation_prompt -%}
        {{- '<|channel>thought\n<channel|>' -}}
    {%- endif -%}
    {%- for call in turn['tool_calls'] or [] -%}
        {{- '<|tool_call>call:' + call['function']['name'] + noted(call['function']['arguments']) + '<tool_call|>' -}}
    {%- endfor -%}
    {%- for result in turn['tool_responses'] or [] -%}
        {%- if result['response'] is mapping -%}
            {{- '<|tool_response>response:' + result['name'] + noted(result['response']) + '<tool_response|>' -}}
        {%- else -%}
            {{- '<|tool_response>response:' + result['name'] + noted({'value': result['response']}) -}}
            {{- '<tool_response|>' -}}
        {%- endif -%}
        {%- set ns.before = 'tool_response' -%}
    {%- endfor -%}
    {{- without_thoughts(turn['content']) if role == 'model' else turn['content'] | trim -}}
    {%- if not (turn['tool_responses'] and not turn['content']) -%}
        {{- '<turn|>\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {%- if ns.before != 'tool_response' -%}
        {{- '<|turn>model\n' -}}
    {%- endif -%}
    {%- if not thinks -%}
        {{- '<|channel>thought\n<channel|>' -}}
    {%- endif -%}
{%- endif -%}
"""
