"""Structures -> grammars that xgrammar can follow. xgrammar, and torch with it, comes when used."""
