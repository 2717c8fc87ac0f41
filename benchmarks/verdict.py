"""The last line of every benchmark that does harm to a server."""


def verdict(is_clean: bool) -> str:
    """Says in a word what the exit status says."""
    return f"{'verdict':<16} {'clean' if is_clean else 'NOT CLEAN'}"
