"""Who sent a request, and what they may do.

Owns the names of roles and scopes. How a caller is found out is `auth` and `middleware`.
"""

from __future__ import annotations

from dataclasses import dataclass

ADMIN = "admin"
MEMBER = "member"
ROLES = (ADMIN, MEMBER)
"""An admin makes accounts and keys for anybody, and sees everybody's usage and the audit log; a
member does neither. Neither sees another account's runs, checkpoints, samples or futures."""

TRAIN = "train"
SAMPLE = "sample"
READ = "read"
SCOPES = frozenset({TRAIN, SAMPLE, READ, ADMIN})
"""What a key may be used for: `train` makes and changes runs and checkpoints, `sample` samples,
`read` looks at what is there and downloads it, `admin` does what the role admin allows."""
MEMBER_SCOPES = SCOPES - {ADMIN}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request."""

    owner: str
    """The account's id: what belongs to it is found by this, and by nothing else."""
    key_id: str
    """The key that was used, by its id: usage is counted on it. Never the key."""
    role: str
    """`admin` or `member`."""
    scopes: frozenset[str]
    """What the key may be used for; `admin` only where the role is."""

    @property
    def is_admin(self) -> bool:
        """Whether both the account's role and the key allow an administrator's work."""
        return self.role == ADMIN and ADMIN in self.scopes
