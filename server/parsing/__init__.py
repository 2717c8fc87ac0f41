"""A model's output text, in pieces → events: reasoning, content, tool calls. No HTTP here."""
