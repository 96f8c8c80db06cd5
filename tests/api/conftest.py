"""The Cadenya dialect as the first key sees it, and an MCP server whose tools a test changes."""

import pytest

from api.cadenya_calls import Cadenya
from serving import Crib


@pytest.fixture
def cadenya(crib: Crib) -> Cadenya:
    """The Cadenya dialect, signed in with the first key."""
    return Cadenya(crib)
