"""Structures -> grammars that xgrammar follows; it is imported, with torch, when first used."""
