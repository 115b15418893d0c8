"""A user of a scripted mesh who knows what every answer must be, and what it was told before."""

import openai
from mesh_program import SCRIPTED
from mesh_users import User, counted, scripted_text, until


class Witness(User):
    """An account with a key, whose completions are compared with what the model says.

    Args:
        url: of a client worker's page.
        email: registered now.
    """

    def __init__(self, url, email="ada@example.org"):
        super().__init__(url, email)
        self.secret = self.key()["key"]

    def complete(self, seed, tokens=5):
        """Ask for a completion, which must be right; return it.

        Raises:
            openai.APIStatusError: it was refused.
        """
        with self.openai(self.secret) as client:
            made = client.completions.create(
                model=SCRIPTED, prompt="Once", max_tokens=tokens, seed=seed
            )
        expected = scripted_text(SCRIPTED, "Once", max_tokens=tokens, seed=seed)
        assert made.choices[0].text == expected
        return made

    def completes(self, seed):
        """Ask for a completion; None if it was refused, else it was right and is returned."""
        try:
            return self.complete(seed)
        except openai.APIStatusError:
            return None

    def use(self, times=1, seconds=30.0):
        """Get some completions, however often it has to ask; they must come into the books."""
        made = [
            until(lambda number=number: self.completes(number), seconds, "a completion")[0]
            for number in range(times)
        ]
        return self.entries_of(*made)[0]

    def keys(self):
        """The account's keys, by their ids."""
        return {key["key_id"]: key for key in self.get("/mesh/keys")["keys"]}

    def everything(self):
        """What a user can see of an account."""
        return counted(self.get("/mesh/usage")), self.keys()

    def writes(self):
        """Make a key, and return it; None where that was refused for now."""
        reply = self.request("POST", "/mesh/keys", {"name": "another"})
        assert reply.status_code in {200, 503}, reply.text
        return reply.json()["key"] if reply.status_code == 200 else None

    def reads(self):
        """Whether its keys are listed, else it was refused for now."""
        reply = self.request("GET", "/mesh/keys")
        assert reply.status_code in {200, 503}, reply.text
        return reply.status_code == 200

    def assert_still_there(self, before):
        """Check that nothing is gone of what `everything` was: more may have come."""
        usage, keys = self.everything()
        assert keys.items() >= before[1].items()
        entries = {entry["request_id"]: entry for entry in usage["entries"]}
        assert len(entries) == len(usage["entries"]), "an entry is there twice"
        # Their order is by their gateways' clocks.
        for entry in before[0]["entries"]:
            assert entries[entry["request_id"]] == entry
        summed = sum(one["prompt_tokens"] + one["completion_tokens"] for one in entries.values())
        assert usage["used_tokens"] == summed
