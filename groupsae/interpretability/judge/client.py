"""Sends requests to the judge: many at once, again where that helps, and never one that has an answer already.

A server that is down, slow or refuses is counted and said; it never raises. Where going on is pointless (the key is
refused, the model is not there, nothing comes back), no further request is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from groupsae.errors import ConfigError
from groupsae.interpretability.judge.answers import plain
from groupsae.interpretability.judge.cache import Answer, AnswerCache, request_digest
from groupsae.interpretability.judge.settings import KEY_VARIABLE, JudgeServer

AGAIN = {408, 425, 429, 500, 502, 503, 504}
"""Statuses after which the same request may be answered later."""
POINTLESS = {
    401: f"the judge refused the key (status 401); is {KEY_VARIABLE} set in the environment?",
    403: f"the judge refused the key (status 403); is {KEY_VARIABLE} set in the environment?",
    404: "the judge knows no such address or model (status 404); look at --judge-url (most servers want it to end in "
    "/v1) and --judge-model",
}
"""Statuses after which no request will be answered, and what to do about them."""
KEY_REFUSED = (401, 403)
LOST_IN_A_ROW = 10
"""After so many requests without an answer no more are sent."""
LONGEST_WAIT = 60.0
"""Seconds before a request is sent again, at most, whatever the server asks for."""
NOT_SENT = "not sent"
MESSAGE_CHARACTERS = 200

Body = Mapping[str, Any]


@dataclass
class Tally:
    """What became of requests.

    cached    answered from disk
    answered  answered by the server
    lost      requests without an answer, by the last fault; `not sent` where the judge was given up
    faults    faults of all attempts, those that were followed by an answer too
    said      what the server wrote with its first refusal of each status
    verdict   why no more requests were sent; empty where all were
    """

    cached: int = 0
    answered: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    lost: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    said: dict[str, str] = field(default_factory=dict)
    verdict: str = ""

    @property
    def complete(self) -> bool:
        """Whether every request has an answer."""
        return not self.lost


class Fault(Exception):
    """An attempt without an answer: its name, whether trying again may help, and the wait that the server asks for."""

    def __init__(self, name: str, *, again: bool, wait: float | None = None) -> None:
        super().__init__(name)
        self.name, self.again, self.wait = name, again, wait


class Judge:
    """A judge's server with the answers it has given.

    `stopped` is asked before each attempt; once it is true nothing more is sent, and what is under way is awaited.
    Raises ConfigError without httpx2, which `groupsae[judge]` installs.
    """

    def __init__(self, server: JudgeServer, cache: AnswerCache, *, stopped: Callable[[], Any] = lambda: False) -> None:
        self.server, self.cache, self.tally = server, cache, Tally()
        self._http, self._stopped, self._lost_in_a_row = _http(), stopped, 0

    def ask(
        self, bodies: Sequence[Body], *, progress: Callable[[int], None] = lambda done: None
    ) -> list[Answer | None]:
        """The answers to these requests, in their order; None where there is none. Equal requests are sent once."""
        began = time.perf_counter()
        try:
            return asyncio.run(self._ask(bodies, progress))
        finally:
            self.tally.seconds += time.perf_counter() - began

    async def _ask(self, bodies: Sequence[Body], progress: Callable[[int], None]) -> list[Answer | None]:
        gate, digests = asyncio.Semaphore(self.server.concurrent), [request_digest(body) for body in bodies]
        different, times = dict(zip(digests, bodies, strict=True)), Counter(digests)

        async def one(client: Any, digest: str, body: Body) -> Answer | None:
            async with gate:
                answer = self._from_cache(body) or await self._from_server(client, body)
            progress(times[digest])
            return answer

        async with self._client() as client:
            found = await asyncio.gather(*(one(client, digest, body) for digest, body in different.items()))
        answers = dict(zip(different, found, strict=True))
        return [answers[digest] for digest in digests]

    def _client(self) -> Any:
        headers = {"Authorization": f"Bearer {self.server.key}"} if self.server.key else {}
        limits = self._http.Limits(max_connections=self.server.concurrent)
        # A proxy from the environment cannot reach this machine's own servers.
        return self._http.AsyncClient(
            headers=headers, limits=limits, timeout=self.server.timeout, trust_env=not self.server.is_local
        )

    def _from_cache(self, body: Body) -> Answer | None:
        answer = self.cache.get(body)
        self.tally.cached += answer is not None
        return answer

    async def _from_server(self, client: Any, body: Body) -> Answer | None:
        fault = NOT_SENT
        for attempt in range(self.server.retries + 1):
            if self.tally.verdict or self._stopped():
                break
            try:
                answer = await self._attempt(client, body)
            except Fault as found:
                fault = found.name
                self.tally.faults[fault] += 1
                if not found.again:
                    break
                if attempt < self.server.retries:
                    await self._wait(attempt, found)
                continue
            self._keep(body, answer)
            return answer
        self._lose(fault)
        return None

    async def _attempt(self, client: Any, body: Body) -> Answer:
        """One answer. Raises Fault."""
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self.server.timeout):  # the library's own limit is one on each read
                response = await client.post(self.server.endpoint, json=body)
        except (TimeoutError, self._http.TimeoutException):
            raise Fault("time-out", again=True) from None
        except (self._http.HTTPError, self._http.InvalidURL, OSError) as error:
            raise Fault(f"no connection ({type(error).__name__})", again=True) from None
        status = response.status_code
        if status != 200:
            self.tally.verdict = self.tally.verdict or POINTLESS.get(status, "")
            if status not in KEY_REFUSED:  # there some servers repeat a part of the key
                self.tally.said.setdefault(f"status {status}", _message(response))
            raise Fault(f"status {status}", again=status in AGAIN, wait=_asked_wait(response.headers))
        return _read(response, time.perf_counter() - began)

    async def _wait(self, attempt: int, fault: Fault) -> None:
        wait = self.server.backoff * 2**attempt * random.uniform(0.75, 1.25) if fault.wait is None else fault.wait
        until = time.monotonic() + min(wait, LONGEST_WAIT)
        while (left := until - time.monotonic()) > 0 and not (self._stopped() or self.tally.verdict):
            await asyncio.sleep(min(left, 0.2))

    def _keep(self, body: Body, answer: Answer) -> None:
        self.cache.put(body, answer)
        self._lost_in_a_row = 0
        self.tally.answered += 1
        self.tally.prompt_tokens += answer.prompt_tokens
        self.tally.completion_tokens += answer.completion_tokens

    def _lose(self, fault: str) -> None:
        self.tally.lost[fault] += 1
        self._lost_in_a_row += fault != NOT_SENT
        if self._lost_in_a_row >= LOST_IN_A_ROW and not self.tally.verdict:
            self.tally.verdict = f"{LOST_IN_A_ROW} requests in a row had no answer, the last for: {fault}"


def _read(response: Any, seconds: float) -> Answer:
    """The answer in a response. Raises Fault where there is none."""
    try:
        value = response.json()
        text = value["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise Fault("no chat completion in the response", again=True) from None
    if not isinstance(text, str):
        raise Fault("no text in the response", again=False)
    usage = value.get("usage")
    return Answer(text, _count(usage, "prompt_tokens"), _count(usage, "completion_tokens"), seconds)


def _message(response: Any) -> str:
    """What a server says about a refusal, in a line."""
    try:
        value = response.json()
        text = value["error"]["message"] if isinstance(value.get("error"), dict) else value.get("message") or value
    except (ValueError, KeyError, AttributeError, RecursionError):
        text = response.text
    return plain(str(text))[:MESSAGE_CHARACTERS]


def _count(usage: Any, name: str) -> int:
    found = usage.get(name) if isinstance(usage, dict) else None
    return found if isinstance(found, int) and found >= 0 else 0


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """The seconds that a server asks to wait, where it says so in seconds."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(headers.get("retry-after", "")))
    return None


def _http() -> Any:
    try:
        import httpx2
    except ImportError:
        raise ConfigError(
            "The judge is reached with httpx2, which is missing: pip install 'groupsae[judge]'."
        ) from None
    return httpx2
