"""The official `openai` package, unmodified, against a real server: numbers and streams."""

import asyncio

import httpx
import openai
import pytest
from server_support import ALIAS, KEY, OTHER_KEY

import tinkex as tinker

pytestmark = pytest.mark.interop

SPROUT = "tinkex/sprout"
ASK = [{"role": "user", "content": "What is 3 plus 4?"}]
MORE = {"model": SPROUT, "messages": ASK, "seed": 5, "max_tokens": 30}


@pytest.fixture(scope="module")
def tokenizer(server):
    from transformers import AutoTokenizer

    (base,) = server.services.bases
    return AutoTokenizer.from_pretrained(base.tokenizer_location)


@pytest.fixture(scope="module")
def sampled(server, checkpoint):
    """Sample through the Tinker API what a request of ours samples."""

    def sample(tokens, *, path=None, n=1, topk=0, **params):
        with tinker.ServiceClient(**server.login) as service:
            chosen = {"model_path": path} if path else {"base_model": SPROUT}
            sampler = service.create_sampling_client(**chosen).result(30)
            return sampler.sample(
                tinker.ModelInput.from_ints(tokens),
                n,
                tinker.SamplingParams(**params),
                include_prompt_logprobs=True,
                topk_sample_logprobs=topk,
            ).result(30)

    return sample


def test_models_are_listed_and_described(client, checkpoint):
    listed = {card.id: card for card in client.models.list()}
    assert set(listed) == {SPROUT, ALIAS, checkpoint}
    for name in (SPROUT, ALIAS, checkpoint, f"{ALIAS};{checkpoint}"):
        card = client.models.retrieve(name)
        assert card.id == name
        assert card.object == "model"
        assert (card.base_model, card.max_context_length) == (SPROUT, 2048)
    other = client.with_options(api_key=OTHER_KEY)
    assert {card.id for card in other.models.list()} == {SPROUT, ALIAS}
    with pytest.raises(openai.NotFoundError):
        other.models.retrieve(checkpoint)


@pytest.mark.parametrize("prefix", ["/oai/api/v1", "/services/tinker-prod/oai/api/v1"])
def test_api_is_where_the_official_one_has_it(server, prefix):
    with openai.OpenAI(base_url=server.url + prefix, api_key=KEY) as client:
        assert client.chat.completions.create(**MORE).choices[0].message.content


@pytest.mark.parametrize("adapter", [False, True], ids=["base", "checkpoint"])
def test_chat_has_the_tokens_and_figures_of_the_tinker_api(
    client, tokenizer, sampled, checkpoint, adapter
):
    name = checkpoint if adapter else SPROUT
    answer = client.chat.completions.create(
        **{**MORE, "model": name}, n=2, logprobs=True, top_logprobs=3
    )
    prompt = tokenizer.apply_chat_template(
        ASK, add_generation_prompt=True, return_dict=False, tokenize=True
    )
    whole = sampled(
        prompt, path=checkpoint if adapter else None, n=2, topk=3, seed=5, max_tokens=30
    )
    for choice, sequence in zip(answer.choices, whole.sequences, strict=True):
        content = choice.logprobs.content
        assert [one.logprob for one in content] == pytest.approx(sequence.logprobs, abs=0)
        assert [one.token for one in content] == [tokenizer.decode([t]) for t in sequence.tokens]
        for one, top in zip(content, sequence.topk_logprobs, strict=True):
            assert [t.logprob for t in one.top_logprobs] == [value for _, value in top]
        assert choice.message.content == tokenizer.decode(sequence.tokens, skip_special_tokens=True)
        assert choice.finish_reason == sequence.stop_reason
    assert answer.model == name
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == sum(len(s.tokens) for s in whole.sequences)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_checkpoint_answers_otherwise_than_its_base(client, checkpoint):
    texts = {
        name: client.completions.create(
            model=name, prompt=[5, 6, 7], logprobs=0, seed=1, max_tokens=8
        )
        .choices[0]
        .logprobs.token_logprobs
        for name in (SPROUT, checkpoint, f"{SPROUT};{checkpoint}")
    }
    assert texts[checkpoint] == texts[f"{SPROUT};{checkpoint}"]
    assert texts[checkpoint] != texts[SPROUT]


@pytest.mark.parametrize("stop", [None, ["answer"], ["s", "\n"]])
def test_stream_adds_up_to_the_answer(client, stop):
    asked = {**MORE, "n": 3, "logprobs": True, "top_logprobs": 1, "stop": stop}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    for choice in whole.choices:
        mine = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert mine[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in mine) == choice.message.content
        assert [t for c in mine if c.logprobs for t in c.logprobs.content] == list(
            choice.logprobs.content
        )
        reasons = [c.finish_reason for c in mine if c.finish_reason]
        assert reasons == [choice.finish_reason]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_stop_string_over_several_tokens_ends_the_text_before_it(client):
    whole = client.chat.completions.create(**MORE).choices[0].message.content
    assert whole == "The answer is 7."
    stopped = client.chat.completions.create(**MORE, stop=["swer is"], logprobs=True)
    assert stopped.choices[0].message.content == "The an"
    assert stopped.choices[0].finish_reason == "stop"
    tokens = [one.token for one in stopped.choices[0].logprobs.content]
    assert tokens == ["The", " answer", " is"]
    assert stopped.usage.completion_tokens == 3
    never = client.chat.completions.create(**MORE, stop="never there")
    assert never.choices[0].message.content == whole


def test_prompts_of_every_form_are_gone_on_with(client, tokenizer):
    texts = ["The word", "A list of"]
    ids = [tokenizer.encode(text) for text in texts]
    common = {"model": SPROUT, "seed": 2, "max_tokens": 6, "n": 2}
    by_text = client.completions.create(prompt=texts, **common)
    by_ids = client.completions.create(prompt=ids, **common)
    alone = [client.completions.create(prompt=one, **common) for one in (texts[0], ids[1])]
    assert [choice.index for choice in by_text.choices] == [0, 1, 2, 3]
    found = [choice.text for choice in by_text.choices]
    assert found == [choice.text for choice in by_ids.choices]
    assert found == [choice.text for one in alone for choice in one.choices]
    assert by_text.usage.prompt_tokens == sum(map(len, ids))
    assert by_text.usage.completion_tokens == 24
    streamed = [""] * 4
    for chunk in client.completions.create(prompt=texts, **common, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == found


@pytest.mark.parametrize("stream", [False, True])
def test_echo_has_the_figures_of_the_prompt(client, tokenizer, sampled, stream):
    text = "The word \U0001f98a is"
    prompt = tokenizer.encode(text)
    asked = {"model": SPROUT, "prompt": text, "echo": True, "logprobs": 2, "seed": 3}
    if stream:
        chunks = list(client.completions.create(**asked, max_tokens=4, stream=True))
        whole = "".join(chunk.choices[0].text for chunk in chunks)
        parts = [chunk.choices[0].logprobs for chunk in chunks]
        figures = [value for part in parts for value in part.token_logprobs]
        offsets = [value for part in parts for value in part.text_offset]
    else:
        choice = client.completions.create(**asked, max_tokens=4).choices[0]
        whole, figures = choice.text, choice.logprobs.token_logprobs
        offsets = choice.logprobs.text_offset
        for top in choice.logprobs.top_logprobs[1:]:
            assert len(top) in {2, 3}
    expected = sampled(prompt, seed=3, max_tokens=4)
    assert figures == [*expected.prompt_logprobs, *expected.sequences[0].logprobs]
    assert whole == text + tokenizer.decode(expected.sequences[0].tokens)
    assert offsets[0] == 0
    assert offsets == sorted(offsets)
    assert offsets[len(prompt)] == len(text)


def test_prompt_alone_can_be_scored(client, tokenizer, sampled):
    text = "One two three"
    scored = client.completions.create(
        model=SPROUT, prompt=text, echo=True, logprobs=0, max_tokens=0
    )
    (choice,) = scored.choices
    prompt = tokenizer.encode(text)
    assert choice.text == text
    assert choice.finish_reason == "length"
    assert choice.logprobs.token_logprobs == sampled(prompt, max_tokens=1).prompt_logprobs
    assert scored.usage.completion_tokens == 0
    assert scored.usage.prompt_tokens == len(prompt)


def test_best_of_returns_the_likeliest(client):
    common = {"model": SPROUT, "prompt": "The", "seed": 4, "max_tokens": 5, "logprobs": 0}
    everything = client.completions.create(**common, n=6)
    best = client.completions.create(**common, n=2, best_of=6)
    ranked = sorted(
        everything.choices,
        key=lambda c: -sum(c.logprobs.token_logprobs) / len(c.logprobs.token_logprobs),
    )
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert best.usage.completion_tokens == everything.usage.completion_tokens


@pytest.mark.parametrize("adapter", [False, True], ids=["base", "checkpoint"])
def test_cached_tokens_are_those_that_were_not_computed(client, checkpoint, adapter):
    messages = [{"role": "user", "content": "Spell the word cached."}]
    asked = {**MORE, "messages": messages, "model": checkpoint if adapter else SPROUT}
    first = client.chat.completions.create(**asked).usage
    again = client.chat.completions.create(**asked).usage
    assert again.prompt_tokens_details.cached_tokens == first.prompt_tokens
    assert first.prompt_tokens_details.cached_tokens < first.prompt_tokens


def test_key_may_come_in_either_header(server):
    for headers in ({"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}):
        assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200
    for headers in ({}, {"authorization": f"Basic {KEY}"}, {"authorization": "Bearer tml-no"}):
        refused = httpx.get(f"{server.url}/v1/models", headers=headers)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"


async def test_many_streams_at_once_are_each_the_answer_to_its_request(server):
    prompts = ["Once upon a time", "The \U0001f98a said", "def f(x):"]

    async def text_of(client, seed):
        asked = {
            "model": SPROUT,
            "prompt": prompts[seed % len(prompts)],
            "seed": seed,
            "max_tokens": 30,
            "n": 2,
            "stop": [None, ["the"], ["\n", "e "]][seed % 3],
            "temperature": 2,  # many a character is broken
        }
        streamed = ["", ""]
        async for chunk in await client.completions.create(**asked, stream=True):
            for choice in chunk.choices:
                streamed[choice.index] += choice.text
        whole = await client.completions.create(**asked)
        return streamed, [choice.text for choice in whole.choices]

    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
        found = await asyncio.gather(*(text_of(client, seed) for seed in range(12)))
    assert all(streamed == whole for streamed, whole in found)
    assert len({tuple(whole) for _, whole in found}) == 12
