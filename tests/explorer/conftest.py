"""An explorer of a tiny run, and its API without a network."""

import pytest

from brainjanus.explorer.session import Explorer


@pytest.fixture(scope="session")
def explorer(tiny_run) -> Explorer:
    return Explorer(tiny_run)


@pytest.fixture
def client(explorer):
    testing = pytest.importorskip("starlette.testclient")
    from brainjanus.explorer.api import make_app

    with testing.TestClient(make_app(explorer), base_url="http://127.0.0.1:8000", headers={"X-Client": "me"}) as made:
        yield made
