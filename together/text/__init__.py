"""Everything that turns words into token ids and back: tokenizer, chat template, grammars, reasoning and tool calls."""
