"""Candidates from a server that speaks OpenAI's protocol for chats: vLLM, llama.cpp, Ollama, or a paid one.

Source: OpenAI's API reference, "Create chat completion".
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx

from luthier.errors import UserError
from luthier.models.search import Continuation, Search
from luthier.recipe import Server

_WHERE = "recipe key repair.rounds.server"
_LONGEST_WAIT_S = 60.0
_REFUSED = (400, 413, 422)  # what servers say to a conversation that is too long for the model


class RefusedConversation(UserError):
    """The server does not take this conversation, and may take others."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What a server wrote to one conversation.

    Attributes:
        outputs: As many as were wanted.
        num_prompt_tokens: By the server's own count, of all questions that it took.
    """

    outputs: list[Continuation]
    num_prompt_tokens: int


def answers(
    server: Server, conversations: Sequence[Sequence[Mapping[str, str]]], search: Search
) -> Iterator[tuple[int, Answers | RefusedConversation]]:
    """The answers to each conversation by its index, as they come, or why the server gives none.

    Raises:
        UserError: No key, no such server, or it refuses whatever is asked.
    """
    headers = {}
    if server.key_variable is not None:
        key = os.environ.get(server.key_variable)
        if not key:
            raise UserError(
                f"the environment has no {server.key_variable}",
                f"{_WHERE}.key_variable",
                f"export {server.key_variable}=..., or leave key_variable out",
            )
        headers["Authorization"] = f"Bearer {key}"
    with (
        httpx.Client(headers=headers, timeout=server.timeout_s) as client,
        ThreadPoolExecutor(server.num_at_once) as pool,
    ):
        futures = {
            pool.submit(_answered, client, server, messages, search): index
            for index, messages in enumerate(conversations)
        }
        try:
            for future in as_completed(futures):
                error = future.exception()
                yield futures[future], error if isinstance(error, RefusedConversation) else future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _answered(
    client: httpx.Client, server: Server, messages: Sequence[Mapping[str, str]], search: Search
) -> Answers:
    """Asks until there are as many answers as wanted: some servers give one, whatever ``n`` says."""
    outputs: list[Continuation] = []
    prompt_tokens = 0
    while (missing := search.num_beams - len(outputs)) > 0:
        body = {
            "model": server.model,
            "messages": list(messages),
            "n": missing,
            "max_tokens": search.max_new_tokens,
            "temperature": search.temperature,
            "top_p": search.top_p,
            "seed": search.seed + len(outputs),
        }
        began = time.monotonic()
        said = _post(client, server, body)
        seconds = time.monotonic() - began
        try:
            usage = said.get("usage") or {}
            prompt_tokens += int(usage.get("prompt_tokens") or 0)
            choices = list(said["choices"])[:missing]
            each = int(usage.get("completion_tokens") or 0) // max(1, len(choices))
            new = [
                Continuation(
                    [], str(one["message"].get("content") or ""), 0.0, each, -float(len(outputs) + i),
                    one.get("finish_reason") != "length", seconds / len(choices),
                )
                for i, one in enumerate(choices)
            ]  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"the server's answer has not the form of a chat: {type(error).__name__} {error}",
                f"{_WHERE}.url",
                "name a server with OpenAI's /chat/completions",
            ) from error
        if not new:
            raise UserError("the server gives no choices", f"{_WHERE}.model", "ask another model")
        outputs += new
    return Answers(outputs, prompt_tokens)


def _post(client: httpx.Client, server: Server, body: Mapping[str, Any]) -> dict[str, Any]:
    url = f"{server.url.rstrip('/')}/chat/completions"
    for tried in range(server.num_retries + 1):
        wait = min(_LONGEST_WAIT_S, 0.5 * 2**tried)
        try:
            response = client.post(url, json=body)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            problem = f"cannot be asked: {str(error) or type(error).__name__}"
        else:
            if response.is_success:
                return _json(response)
            problem = f"says {response.status_code}: {' '.join(response.text.split())[:300]}"
            if response.status_code != 429 and response.status_code < 500:
                kind = RefusedConversation if response.status_code in _REFUSED else UserError
                raise kind(
                    f"the server {problem}", _WHERE, "see to url, model and key; what was written is kept"
                )
            given = response.headers.get("retry-after", "")
            wait = min(_LONGEST_WAIT_S, float(given)) if given.isdigit() else wait
        if tried < server.num_retries:
            time.sleep(wait)  # as the server asks, or longer each time
    raise UserError(
        f"the server {problem}",
        f"{_WHERE}.url",
        "start it, and run the same command again: what was written is kept",
    )


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        said = response.json()
    except ValueError as error:
        raise UserError(
            f"the server's answer is no JSON: {error}",
            f"{_WHERE}.url",
            "end it with the version: http://host:8000/v1",
        ) from error
    return said if isinstance(said, dict) else {}
