"""The version of the installed package."""

from importlib.metadata import PackageNotFoundError, version


def _installed_version() -> str:
    try:
        return version("adadecode-server")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "0+checkout"


VERSION = _installed_version()
