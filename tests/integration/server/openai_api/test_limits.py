"""Limits of a key, and a base model without a tokenizer, as OpenAI's client sees them."""

import openai
import pytest
from server_support import BASE_MODEL, KEY

from tinkex.server.config import Limits


@pytest.fixture
def limited(make_server):
    with (
        make_server(limits=Limits(requests_per_minute=3)) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client,
    ):
        yield client


def test_key_that_has_used_its_minute_is_told_when_to_come_again(limited):
    for _ in range(3):
        limited.models.list()
    with pytest.raises(openai.RateLimitError) as caught:
        limited.models.list()
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"
    assert int(caught.value.response.headers["retry-after"]) >= 1


def test_base_model_without_a_tokenizer_is_refused_by_name(limited):
    with pytest.raises(openai.BadRequestError, match="no tokenizer") as caught:
        limited.completions.create(model=BASE_MODEL, prompt=[5, 6])
    assert caught.value.param == "model"
