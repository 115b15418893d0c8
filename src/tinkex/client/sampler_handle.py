"""A sampling client as plain data, to be made again in another process.

Owns the form: the official SDK's, so that a handle made by one is read by the other. A handle
carries no credentials; a pickle does, as whoever unpickles it gets a client that works.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from tinkex.errors import InputError


@dataclass(frozen=True, slots=True)
class SamplerState:
    """What another process needs."""

    session_id: str
    sampling_session_id: str
    base_model: str
    base_url: str
    client_config: dict[str, Any]
    """What the server said of itself, so that a clone need not ask."""
    client_dynamic_config: dict[str, Any]
    record_stability_info: bool = False

    def handle(self) -> str:
        """Return the state as text."""
        content = {
            "session_id": self.session_id,
            "sampling_session_id": self.sampling_session_id,
            "holder": {
                "base_url": self.base_url,
                "default_headers_overrides": {},  # they may hold secrets
                "client_config": self.client_config,
                "client_dynamic_config": self.client_dynamic_config,
                "api_key": None,
            },
            "base_model": self.base_model,
            "record_stability_info": self.record_stability_info,
        }
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode()

    @classmethod
    def of_handle(cls, handle: str) -> SamplerState:
        """Read a handle.

        Raises:
            InputError: it is none.
        """
        try:
            content = json.loads(base64.b64decode(handle, altchars=b"-_", validate=True))
            holder = content["holder"]
            state = cls(
                session_id=content["session_id"],
                sampling_session_id=content["sampling_session_id"],
                base_model=content["base_model"],
                base_url=holder["base_url"],
                client_config=dict(holder["client_config"]),
                client_dynamic_config=dict(holder["client_dynamic_config"]),
                record_stability_info=bool(content.get("record_stability_info", False)),
            )
        except (binascii.Error, ValueError, KeyError, TypeError) as error:
            raise InputError(
                "This is no sampler handle. get_sampler_handle() of a sampling client makes one; "
                "pass it on as it is."
            ) from error
        texts = (state.session_id, state.sampling_session_id, state.base_model, state.base_url)
        if not all(isinstance(text, str) and text for text in texts):
            raise InputError("This sampler handle is damaged: it names no sampler.")
        return state
