import pytest
from scripted_server import scripted_server


@pytest.fixture
def script():
    with scripted_server() as script:
        yield script
