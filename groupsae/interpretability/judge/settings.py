"""Where the judge is, how it is asked, and how much."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from groupsae.errors import ConfigError
from groupsae.interpretability.judge.prompts import RequestForm

KEY_VARIABLE = "GROUPSAE_JUDGE_KEY"
"""The environment variable that holds the key of the judge's server."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class JudgeServer:
    """A server that speaks OpenAI's chat protocol, and how patient to be with it.

    url         what comes before `/chat/completions`, such as `http://127.0.0.1:8000/v1`
    model       the model's name there
    thinks      whether the model thinks before it answers, and needs room for it
    concurrent  most requests at once
    timeout     seconds to wait for one answer
    retries     how often a request is sent again after a time-out, a lost connection, or status 408, 425, 429, 5xx
    backoff     seconds before the first of these; twice as long before each further one

    Raises ConfigError for values that cannot be used, before anything is sent.
    """

    url: str
    model: str
    concurrent: int = 8
    timeout: float = 60.0
    retries: int = 4
    backoff: float = 1.0
    thinks: bool = False

    def __post_init__(self) -> None:
        _require_url(self.url)
        if not self.model.strip():
            raise ConfigError("--judge-model is empty; give the name that the judge's server knows its model by.")
        for name, least in (("concurrent", 1), ("retries", 0), ("backoff", 0), ("timeout", 0.001)):
            if not getattr(self, name) >= least:
                raise ConfigError(f"--{name} = {getattr(self, name)}, but it must be at least {least}.")

    @property
    def endpoint(self) -> str:
        """The address that requests are posted to."""
        base = self.url.rstrip("/")
        return base if base.endswith("/chat/completions") else f"{base}/chat/completions"

    @property
    def form(self) -> RequestForm:
        """The form of its requests."""
        return RequestForm(self.model, self.thinks)

    @property
    def is_local(self) -> bool:
        """Whether the server runs on this machine."""
        return urlsplit(self.url).hostname in LOOPBACK

    @property
    def key(self) -> str | None:
        """The key, from the environment only; None where none is set."""
        return os.environ.get(KEY_VARIABLE) or None


def _require_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"--judge-url {url!r} is no address: {error}.") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"--judge-url {url!r} is no http(s) address; give one such as http://127.0.0.1:8000/v1.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            f"--judge-url must hold no user, password or query: addresses are written into records. Put the key into "
            f"the environment variable {KEY_VARIABLE}."
        )


@dataclass(frozen=True)
class Sampling:
    """How many latents and windows are judged. The defaults are the published settings.

    latents          latents per SAE and layer
    num_tokens       held-out tokens that windows are taken from, at most
    window_tokens    tokens per window
    explained        activating windows that an explanation is made from, the strongest first
    scored           activating windows that scores are made of, one from each of as many quantiles of their peaks;
                     as many that do not activate
    shown            windows in one request of a score
    seed             decides all choices
    layers           the hookpoints whose latents are judged; all without a name

    Raises ConfigError for a number below 1.
    """

    latents: int = 64
    num_tokens: int = 1_000_000
    window_tokens: int = 32
    explained: int = 20
    scored: int = 10
    shown: int = 5
    seed: int = 0
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("latents", "num_tokens", "window_tokens", "explained", "scored", "shown"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}, but at least one is needed.")
