"""Finds a tag in a text that comes in pieces, in linear time."""


class TagFinder:
    """Looks for one tag at a time; holds back at most the beginning of a tag."""

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self._held = ""

    def push(self, text: str, begin: int = 0) -> tuple[str, int | None]:
        """Search `text[begin:]`, which continues the text so far.

        Returns:
            The text before the tag and the index in `text` after it; or what cannot belong to a
            tag, and None.
        """
        tag, held = self._tag, self._held
        self._held = ""
        if held:
            joint = held + text[begin : begin + len(tag) - 1]
            at = joint.find(tag)
            if at >= 0:
                return joint[:at], begin + at + len(tag) - len(held)
            if begin + len(tag) - 1 >= len(text):
                return self._hold_back(joint), None
        at = text.find(tag, begin)
        if at >= 0:
            return held + text[begin:at], at + len(tag)
        return held + self._hold_back(text[begin:]), None

    def finish(self) -> str:
        """Return what was held back."""
        held, self._held = self._held, ""
        return held

    def _hold_back(self, text: str) -> str:
        num_held = num_begun(text, self._tag)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]


def num_begun(text: str, tag: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `tag`."""
    longest = min(len(tag) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(tag[:n])), 0)
