"""configs/default.yaml documents the defaults: it must name every setting and change none."""

import argparse
from pathlib import Path

import yaml

from server.settings import ServerSettings
from server.settings_sources import load_settings

DEFAULT = Path(__file__).parents[2] / "configs" / "default.yaml"


def test_it_names_every_setting():
    keys = yaml.safe_load(DEFAULT.read_text())

    assert {key.replace("-", "_") for key in keys} == set(ServerSettings.model_fields)


def test_it_changes_no_default():
    settings = load_settings(argparse.Namespace(config=DEFAULT), environment={})

    assert settings == ServerSettings()
