"""Whether W&B's server can be used."""

from __future__ import annotations

import os
from urllib.parse import urlparse

SECONDS_FOR_AN_ANSWER = 5.0


def offline_reason() -> str | None:
    """Short reason why W&B has to work offline, or None if its server accepts the key.

    A `WANDB_MODE` that the user has set is respected.
    """
    mode = os.environ.get("WANDB_MODE")
    if mode in ("offline", "dryrun"):
        return f"WANDB_MODE={mode}"
    import wandb
    from requests.utils import get_netrc_auth

    server = wandb.setup().settings.base_url
    if os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):  # W&B exchanges it for a key
        return None
    # the key that `wandb.init` will find; unlike `wandb.login` this needs neither the user nor the server
    _, netrc_key = get_netrc_auth(server) or (None, None)
    key = os.environ.get("WANDB_API_KEY") or netrc_key
    return server_fault(server, key) if key else "no API key found"


def server_fault(server: str, key: str) -> str | None:
    """Reason why a server cannot be used, by W&B's query for the key's owner, but not with its timeout of minutes."""
    import requests

    host = urlparse(server).hostname
    try:
        answer = requests.post(
            f"{server}/graphql",
            json={"query": "query Viewer { viewer { id } }"},
            auth=("api", key),
            timeout=SECONDS_FOR_AN_ANSWER,
        )
    except requests.Timeout:
        return f"{host} does not answer"
    except requests.RequestException:
        return f"{host} cannot be reached"
    if answer.status_code in (401, 403):
        return f"{host} does not accept the API key"
    if not answer.ok:
        return f"{host} answers with error {answer.status_code}"
    try:
        viewer = answer.json()["data"]["viewer"]
    except (ValueError, KeyError, TypeError):
        return f"{host} does not answer like a W&B server"
    return None if viewer else f"{host} does not accept the API key"
