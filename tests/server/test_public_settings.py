from pathlib import Path

import pytest
from pydantic import BaseModel, SecretStr

from server.public_settings import public_settings


class Settings(BaseModel):
    value: object


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (SecretStr("sk-1"), "**********"),
        ((SecretStr("sk-1"), SecretStr("sk-2")), ["**********", "**********"]),
        (Path("/etc/tls/server.key"), "server.key"),
        ("/models/smol", "smol"),
        ("~/models/smol", "smol"),
        ("org/model", "org/model"),
        ("https://user:pass@host:4318/v1/traces?token=1", "https://host:4318/v1/traces"),
        ({"a": "/x/y"}, {"a": "y"}),
        (None, None),
        (True, True),
        (0.5, 0.5),
    ],
)
def test_what_may_be_shown(value, shown):
    assert public_settings(Settings(value=value)) == {"value": shown}


def test_a_proxys_prefix_is_no_directory():
    class Prefixed(BaseModel):
        root_path: str

    assert public_settings(Prefixed(root_path="/api/llm")) == {"root_path": "/api/llm"}
