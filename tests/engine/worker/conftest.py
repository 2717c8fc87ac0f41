"""The tiny model that most tests of a step run on. Imports torch only where it is asked for."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from engine.model.decoder import Decoder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> "Decoder":
    from tiny_model import load_tiny, write_tiny_llama

    from engine.model.ops.torch_ops import TorchOps

    return load_tiny(write_tiny_llama(tmp_path_factory.mktemp("tiny")), TorchOps("cpu"))
