"""Constraints on JSON strings: regular expressions that xgrammar follows exactly, and formats
written as such.

xgrammar writes a pattern's matches between quotes without escaping them. It takes `"`, `\\` and
control characters out of `.` and of negated ASCII classes by itself, but not out of literals and
escapes, and it ignores anchors within a pattern and look-arounds. Patterns that rely on these are
refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from engine.errors import StructureError

_DATE = (
    r"(?:[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    r"|[1-9][0-9](?:0[48]|[2468][048]|[13579][26])-02-29)"
)
_TIME = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?"
    r"(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_LABEL = r"[a-zA-Z0-9]{1,16}(?:-[a-zA-Z0-9]{1,16})?"  # every state costs xgrammar milliseconds
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,3}}"


@dataclass(frozen=True, slots=True)
class Format:
    """A format as a regular expression, and the numbers of characters that it may have."""

    pattern: str
    shortest: int
    longest: int


# Each pattern matches nothing but its format, and all of it that is in common use. xgrammar's own
# formats accept February 30, octets with leading zeros and names that are too long. URIs are those
# of the web, http and https.
FORMATS: Mapping[str, Format] = {
    "date": Format(_DATE, 10, 10),
    "time": Format(_TIME, 9, 21),
    "date-time": Format(f"{_DATE}T{_TIME}", 20, 32),
    "ipv4": Format(rf"{_OCTET}(?:\.{_OCTET}){{3}}", 7, 15),
    "uuid": Format(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", 36, 36),
    "hostname": Format(_HOST, 1, 135),
    "email": Format(
        r"[a-zA-Z0-9_+-]{1,16}(?:\.[a-zA-Z0-9_+-]{1,16})?"
        rf"@(?:{_LABEL}\.){{1,2}}[a-zA-Z]{{2,10}}",
        6,
        112,
    ),
    "uri": Format(
        r"https?://[a-zA-Z0-9][a-zA-Z0-9.-]{0,150}(?::[1-9][0-9]{0,3})?"
        r"(?:/[a-zA-Z0-9/?&=._~-]{0,250})?",
        8,
        415,
    ),
}
XGRAMMAR_FORMATS = frozenset(("duration", "ipv6"))  # formats that xgrammar itself has right

# \s, \S and . as in ECMA-262; xgrammar's own know no white space or line ends beyond ASCII.
# Within a class each begins and ends with a letter's escape, so that `-` beside it makes no range.
_SPACES = r"\s\u{a0}\u{1680}\u{2000}-\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}\u{feff}\s"
_OTHERS = (
    r"\w!-\u{9f}\u{a1}-\u{167f}\u{1681}-\u{1fff}\u{200b}-\u{2027}\u{202a}-\u{202e}"
    r"\u{2030}-\u{205e}\u{2060}-\u{2fff}\u{3001}-\u{fefe}\u{ff00}-\u{10ffff}\w"
)
_WITHIN_CLASSES = {r"\s": _SPACES, r"\S": _OTHERS}
_ELSEWHERE = {r"\s": f"[{_SPACES}]", r"\S": f"[^{_SPACES}]", ".": r"[^\u{2028}\u{2029}]"}

_ESCAPED_CONTROLS = frozenset("nrtfv0cbea")
_UNWRITABLE = "can match a quote, a backslash or a control character, which JSON escapes"


def length_pattern(shortest: int, longest: int | None) -> str:
    """Return a pattern for strings of these lengths, without characters that JSON has to escape."""
    return rf'^[^"\\\x00-\x1f]{{{shortest},{"" if longest is None else longest}}}$'


def check_regex(pattern: str) -> None:
    """Refuse a regular expression with parts that xgrammar would ignore.

    Raises:
        StructureError: It has such a part; the message names it.
    """
    for index, kind in _tokens(pattern):
        character = pattern[index]
        if kind == "group" and pattern[index : index + 2] == "(?":
            follows = pattern[index + 2 : index + 4]
            if follows[:1] not in (":", "<") or follows in ("<=", "<!"):
                raise StructureError("look-arounds and inline flags are not supported")
        if kind == "plain" and character == "^" and index > 0:
            raise StructureError("^ is supported at the very beginning only")
        if kind == "plain" and character == "$" and index < len(pattern) - 1:
            raise StructureError("$ is supported at the very end only")


def whole_pattern(pattern: str) -> str:
    """Rewrite a JSON Schema's pattern, which may match anywhere, to match the whole string.

    Raises:
        StructureError: `check_regex` refuses it, or it can match what JSON has to escape.
    """
    check_regex(pattern)
    tokens = _tokens(pattern)
    for index, kind in tokens:
        character = pattern[index]
        is_quote = character == '"' and kind not in ("class", "negated")
        is_escape = character == "\\" and kind != "negated" and _is_unwritable(pattern, index + 1)
        if is_quote or is_escape or (character < " " and kind != "negated"):
            raise StructureError(_UNWRITABLE)
    begins = pattern.startswith("^")
    ends = bool(tokens) and pattern[tokens[-1][0] :] == "$" and tokens[-1][1] == "plain"
    if (begins or ends) and _has_alternatives(pattern):
        return _respelled(pattern)  # xgrammar matches every branch with the whole
    body = _respelled(pattern[begins : len(pattern) - ends])
    return f"^{'' if begins else '.*'}(?:{body}){'' if ends else '.*'}$"


def _respelled(pattern: str) -> str:
    """Write what xgrammar reads otherwise than ECMA-262 in a way that both read alike.

    That is `?`, which xgrammar gets wrong after `(…+)`, what `_ELSEWHERE` lists, and what is not
    ASCII in classes: beside such a character xgrammar lets quotes into negated ones. Control
    characters get into those that match nothing else. Lazy marks, which change no match, go.
    """
    if not pattern:
        return ""
    pieces: list[str] = []
    tokens = _tokens(pattern)
    ends = [index for index, _ in tokens[1:]] + [len(pattern)]
    before, is_plain = "", False
    for (index, kind), end in zip(tokens, ends, strict=True):
        piece = pattern[index:end]
        is_in_class = kind in ("class", "negated")
        if piece == "?" and kind == "plain" and before != "(":
            is_lazy = is_plain and before in ("*", "+", "?", "}")
            pieces.append("" if is_lazy else "{0,1}")
        elif kind == "negated" and before + piece == "[^":
            pieces.append(r"^\x00-\x1f")
        elif is_in_class and not piece.isascii():
            pieces.append(f"\\u{{{ord(piece[-1]):x}}}")
        else:
            spellings = _WITHIN_CLASSES if is_in_class else _ELSEWHERE
            pieces.append(spellings.get(piece, piece))
        before, is_plain = piece, kind == "plain"
    return "".join(pieces)


def _has_alternatives(pattern: str) -> bool:
    """Whether a pattern has a `|` outside of all groups."""
    depth = 0
    for index, kind in _tokens(pattern):
        if kind == "group":
            depth += 1
        elif kind == "plain" and pattern[index] == ")":
            depth -= 1
        elif kind == "plain" and pattern[index] == "|" and depth == 0:
            return True
    return False


def _tokens(pattern: str) -> list[tuple[int, str]]:
    """Return (index, kind) of every character or escape.

    The kinds are plain, group and escape; in a class all are class, in a negated one negated.
    """
    tokens: list[tuple[int, str]] = []
    index, within = 0, ""
    while index < len(pattern):
        character = pattern[index]
        kind = within or "plain"
        if character == "\\":
            tokens.append((index, within or "escape"))
            index += 2
            continue
        if within:
            within = "" if character == "]" else within
        elif character == "[":
            within = "negated" if pattern[index + 1 : index + 2] == "^" else "class"
            kind = within
        elif character == "(":
            kind = "group"
        tokens.append((index, kind))
        index += 1
    return tokens


def _is_unwritable(pattern: str, index: int) -> bool:
    """Whether the escape whose letter is at `index` stands for something that JSON escapes."""
    letter = pattern[index : index + 1]
    if letter in ("x", "u"):
        digits = pattern[index + 1 : index + (3 if letter == "x" else 5)]
        if digits[:1] == "{":
            digits = pattern[index + 2 :].partition("}")[0]
        try:
            code = int(digits, 16)
        except ValueError:
            return True
        is_surrogate = 0xD800 <= code <= 0xDFFF  # half a character, which UTF-8 cannot write
        return code < ord(" ") or is_surrogate or chr(min(code, 0x10FFFF)) in '"\\'
    return letter == "" or letter in _ESCAPED_CONTROLS or letter in '"\\'
