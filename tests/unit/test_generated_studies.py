"""Whatever is written into a study, it ends in a study or in a sentence, soon."""

import random
import re
import time

import pytest
from generated_studies import studies
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saeflow.config.reading import load
from saeflow.config.sections import ConfigError

PYTHON = re.compile(
    r"\b(None|True|False|dict|tuple|str|int|float|bool|NoneType|pydantic|Traceback|instance of|(Input|String) should)\b"
    r"|valid (tuple|string|integer|dictionary|list|boolean|number)|\^\[|object at 0x"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("studies")


@pytest.mark.usefixtures("unchecked")
@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_a_study_is_read_or_refused_in_the_users_words_within_two_seconds(folder, seed):
    path = folder / "study.yaml"
    path.write_bytes(studies(random.Random(seed)))
    started = time.process_time()
    try:
        load(path)
    except ConfigError as error:
        said = str(error)
        assert PYTHON.search(said) is None
        assert all(line.isprintable() and len(line) < 1500 for line in said.splitlines())
    assert time.process_time() - started < 2
