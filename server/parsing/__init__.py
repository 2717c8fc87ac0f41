"""Turns pieces of a model's output text into events: reasoning, content, tool calls. No HTTP."""
