"""A judge that follows rules, on 127.0.0.1: it explains a latent by its most common marked token, and believes that.

And latents that such a judge can understand: each fires on one word of its own.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from groupsae.interpretability.judge.sampling import LatentWindows, with_values_of
from groupsae.interpretability.window import Window

WORDS = [f" word{number:03}" for number in range(400)]

Reply = tuple[int, Any]
"""Status and body; a body of text is sent as it is. Status 0: the connection is closed without an answer."""


def rule(body: dict[str, Any]) -> str:
    """What the rule-based judge says to a request."""
    task, text = (message["content"] for message in body["messages"])
    if "[EXPLANATION]:" in task:
        (word, _), *_ = Counter(re.findall(r"<<(.*?)>>", text)).most_common(1)
        return f'They are all alike.\n[EXPLANATION]: the token "{word}"'
    word = re.search(r'the token "(.*)"', text)[1]
    lines = re.findall(r"^\d+\. (.*)$", text, re.MULTILINE)
    wanted = f"<<{word}>>" if "marked" in task else word
    return json.dumps([int(wanted in line) for line in lines])


def completion(text: Any) -> dict[str, Any]:
    """A response in OpenAI's form."""
    usage = {"prompt_tokens": 100, "completion_tokens": 7}
    return {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}


@dataclass
class RuleJudge:
    """What was asked, by whom, and how many at once; `reply` decides what is answered to the n-th request."""

    url: str = ""
    reply: Callable[[int, dict[str, Any]], Reply] = lambda number, body: (200, completion(rule(body)))
    headers: dict[str, str] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def handle(self, body: dict[str, Any], key: str | None) -> Reply:
        """Note a request, and answer it."""
        with self.lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.keys.append(key)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return self.reply(number, body)
        finally:
            with self.lock:
                self.at_once -= 1


@contextlib.contextmanager
def serving() -> Iterator[RuleJudge]:
    """A rule-based judge on a free port while the block runs."""
    judge = RuleJudge()

    class Handler(BaseHTTPRequestHandler):
        protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, value = judge.handle(body, self.headers.get("Authorization"))
            if self.path != "/v1/chat/completions":
                status, value = 404, {"error": "no such path"}
            if not status:
                self.close_connection = True
                return
            data = (value if isinstance(value, str) else json.dumps(value)).encode()
            with contextlib.suppress(OSError):  # the other side has gone
                self.send_response(status)
                for name, text in {"Content-Length": str(len(data)), **judge.headers}.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def word_latents(count: int = 6, *, scored: int = 10, width: int = 32, seed: int = 0) -> list[LatentWindows]:
    """Latents at layers.0 of the suite `groups`; latent n fires on WORDS[n], which no other window holds."""
    random = np.random.default_rng(seed)

    def window(word: str | None) -> Window:
        tokens = [WORDS[i] for i in random.integers(count, len(WORDS), width)]
        values = [0.0] * width
        if word is not None:
            place = int(random.integers(width))
            tokens[place], values[place] = word, float(random.uniform(1, 5))
        return Window(tuple(tokens), tuple(values))

    latents = []
    for number in range(count):
        explained, active = (tuple(window(WORDS[number]) for _ in range(scored)) for _ in range(2))
        others, inactive = (tuple(window(None) for _ in range(scored)) for _ in range(2))
        latents.append(
            LatentWindows(
                suite="groups",
                hookpoint="layers.0",
                latent=number,
                firing_rate=0.01,
                explained=explained,
                unrelated=with_values_of(others, explained),
                active=active,
                inactive=with_values_of(inactive, active),
            )
        )
    return latents
