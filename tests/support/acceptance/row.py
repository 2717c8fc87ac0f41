"""A row of the acceptance table, with its checks and the tests elsewhere that prove it."""

from collections.abc import Callable
from dataclasses import dataclass

from acceptance.table_server import Serve

Check = Callable[[Serve], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A fault or bad input, what is expected, and how it is checked."""

    number: int
    fault: str
    expected: str
    checks: tuple[Check, ...] = ()  # run here, each followed by the common post-conditions
    proofs: tuple[str, ...] = ()  # tests elsewhere ("file::name"); have to pass in the same run
    note: str = ""  # differences between what is expected and what is done, and why
    marks: tuple[str, ...] = ()  # pytest marks that the proofs need


def row(number: int, fault: str, expected: str, *checks: Check, **more: object) -> Row:
    """Make a row, with its arguments in reading order."""
    return Row(number=number, fault=fault, expected=expected, checks=checks, **more)  # type: ignore[arg-type]
