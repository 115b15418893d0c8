"""Somebody who uses a mesh: an account over a client worker's HTTP, and its keys."""

import httpx
import openai
from mesh_processes import CLOCK
from mesh_scripted import completion, text_of

from tinkex.mesh.api.completion import CompletionMessage, TextMessage

PASSWORD = "a long enough password"
SPROUT = "tinkex/sprout"
PATIENCE_S = 60.0


def until(condition, seconds=PATIENCE_S, what="it"):
    """Wait until something comes true; return what it is, and how many seconds that took."""
    began = CLOCK.monotonic()
    while not (found := condition()):
        assert CLOCK.monotonic() < began + seconds, f"{what} did not come true in {seconds} s"
        CLOCK.sleep_sync(0.05)
    return found, CLOCK.monotonic() - began


class User:
    """An account.

    Args:
        url: of a client worker's page.
        email: registered now, unless `login` says that it was before.
    """

    def __init__(self, url, email, *, login=False):
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=60)
        self.login = {"email": email, "password": PASSWORD}
        if not login:
            reply, _ = until(self._registered, what="a registration")
            self.account = reply.json()["account_id"]
        self.log_in()

    def _registered(self):
        """Register; None while a network that has just started cannot yet."""
        reply = self.request("POST", "/mesh/register", self.login)
        assert reply.status_code in {200, 503}, reply.text
        return reply if reply.status_code == 200 else None

    def log_in(self):
        self.token = self.post("/mesh/login", self.login)["access_token"]

    def request(self, verb, path, body=None, credential=None):
        headers = {"authorization": f"Bearer {credential or getattr(self, 'token', 'none')}"}
        return self.http.request(verb, path, json=body, headers=headers)

    def get(self, path, **options):
        reply = self.request("GET", path, **options)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def post(self, path, body=None, **options):
        reply = self.request("POST", path, body, **options)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def key(self, **options):
        return self.post("/mesh/keys", {"name": "test", **options})

    def openai(self, key):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def usage(self, credential=None):
        return self.request("GET", "/mesh/usage", credential=credential).json()

    def settled(self, count, seconds=PATIENCE_S):
        """The account's usage once `count` requests are in it: the logs travel from the gateway."""
        report, _ = until(
            lambda: (found := self.get("/mesh/usage")) and len(found["entries"]) >= count and found,
            seconds,
            f"usage of {count} requests",
        )
        return report

    def entries_of(self, *replies):
        """The account's usage once these completions are in it, and the entry of each.

        By their ids: what was asked for earlier may come into the usage later.
        """
        names = [reply.id.partition("-")[2] for reply in replies]

        def found():
            report = self.get("/mesh/usage")
            entries = {entry["request_id"]: entry for entry in report["entries"]}
            return all(name in entries for name in names) and (report, entries)

        (report, entries), _ = until(found, what="usage of what was answered")
        return report, [entries[name] for name in names]

    def move(self, url):
        """Go on at another page: a client worker that starts anew may have another port."""
        self.url, self.http.base_url = url, url

    def close(self):
        self.http.close()


def counted(report):
    """A report without what may differ later: whether the client has countersigned an entry yet."""
    return {
        "entries": [{**entry, "state": ""} for entry in report["entries"]],
        "used_tokens": report["used_tokens"],
        "quota_tokens": report["quota_tokens"],
        "account_id": report["account_id"],
    }


def tokens_of(chunk):
    """The tokens of a piece of a completion that was asked for with `logprobs`."""
    logprobs = chunk.choices[0].logprobs if chunk.choices else None
    if logprobs is None:
        return []
    return list(zip(logprobs.tokens, logprobs.token_logprobs, strict=True))


def scripted_text(model, prompt, *, max_tokens, seed):
    """What the scripted model says."""
    message = CompletionMessage(
        model=model, prompt=TextMessage(prompt), max_tokens=max_tokens, seed=seed
    )
    return text_of(completion(message, 0, max_tokens))


def streamed(client, model, prompt, **options):
    """The text of a streamed completion, and the longest pause in it, in seconds."""
    text, pause_s, last = "", 0.0, CLOCK.monotonic()
    for chunk in client.completions.create(model=model, prompt=prompt, stream=True, **options):
        text += chunk.choices[0].text if chunk.choices else ""
        now = CLOCK.monotonic()
        pause_s, last = max(pause_s, now - last), now
    return text, pause_s


def told(what, seconds):
    """Print what was measured; `pytest -s` shows it."""
    figures = ", ".join(f"{one:.1f} s" for one in seconds)
    print(f"{what}: {figures}")  # noqa: T201 - a proof says what it saw
