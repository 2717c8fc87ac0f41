"""The last line of every benchmark that puts a server under stress."""


def verdict(is_clean: bool) -> str:
    """Format in words what the exit status says."""
    return f"{'verdict':<16} {'clean' if is_clean else 'NOT CLEAN'}"
