"""What the tests of faults share: the seed, the row of the table that a test fills, and the data."""

import os
import random
from collections.abc import Iterator
from dataclasses import asdict

import pytest
from harness import Journal, Row


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """The generator of a test's random moments and victims; SKDCGN_FAULTS_SEED is its seed."""
    return random.Random(f"{os.environ.get('SKDCGN_FAULTS_SEED', '0')} {request.node.name}")


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Iterator[Row]:
    """The row of the table that the test fills; its parameter, where it has one, is the kind of fault."""
    found = Row(request.param)
    yield found
    request.node.user_properties.append(("fault", asdict(found)))


@pytest.fixture
def journal() -> Journal:
    """Notes what is finished while a test goes on."""
    return Journal()
