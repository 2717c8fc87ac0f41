"""The acceptance table runs last: its rows ask how the tests that they point to have ended."""

import pytest

pytest.register_assert_rewrite("acceptance")

from acceptance.proofs import OUTCOMES, Outcomes  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    """Outcomes of this run."""
    config.stash[OUTCOMES] = Outcomes()
    config.pluginmanager.register(config.stash[OUTCOMES])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order is kept otherwise."""
    items.sort(key=lambda item: item.path.name == "test_acceptance_table.py")
