"""A row of the acceptance table, and the pointers to tests that prove more of it than fits here."""

from collections.abc import Callable
from dataclasses import dataclass

from acceptance.table_server import Serve

Check = Callable[[Serve], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fault or bad input."""

    number: int
    fault: str
    expected: str
    checks: tuple[Check, ...] = ()  # run here, each followed by the common post-conditions
    proofs: tuple[str, ...] = ()  # tests elsewhere ("file::name"); have to pass in the same run
    note: str = (
        ""  # where more, or other than what was asked for, is done; what is left out, and why
    )
    marks: tuple[str, ...] = ()  # what the proofs need


def row(number: int, fault: str, expected: str, *checks: Check, **more: object) -> Row:
    """A row in the order in which it is read."""
    return Row(number=number, fault=fault, expected=expected, checks=checks, **more)  # type: ignore[arg-type]
