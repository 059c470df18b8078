"""Writes texts with an OpenAI-compatible server.

Requests are retried with a growing pause, a limited number of times, before one clear error.
Finished texts are kept.
"""

import os
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

from ift_scale.config.write import WriterConfig
from ift_scale.errors import EnvironmentProblem, shorten
from ift_scale.write.prompts import Prompt, cut

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
_NO_KEY = "none"
_WORTH_A_RETRY = {408, 409, 425, 429}


class Endpoint:
    """A server, shared by all threads that send it requests."""

    def __init__(self, config: WriterConfig, section: str):
        import openai

        self._errors = openai
        self.config, self.section = config, section
        self.stopping = threading.Event()
        self._takes_seeds = True
        self._client: Any = openai.OpenAI(
            base_url=config.base_url,
            api_key=os.environ.get(config.api_key_variable) or _NO_KEY,
            max_retries=0,  # our own retries report what they wait for
            timeout=config.timeout,
        )

    def text(self, prompt: Prompt, seed: int) -> str:
        """Returns the server's text; EnvironmentProblem if all retries fail."""
        return cut(
            _well_formed(self._within_retries(lambda: self._request(prompt, seed), prompt)),
            prompt.stop,
        )

    def _request(self, prompt: Prompt, seed: int) -> str:
        """Sends one request, without the seed once the server has refused it."""
        config = self.config
        common: dict[str, Any] = {
            "model": config.model,
            "temperature": config.temperature,
            "top_p": config.top_p,
        }
        common |= {"max_tokens": config.max_tokens} | (
            {"stop": [prompt.stop]} if prompt.stop else {}
        )
        common |= {"seed": seed} if self._takes_seeds else {}
        try:
            if prompt.chat:
                answer = self._client.chat.completions.create(
                    messages=[{"role": "user", "content": prompt.text}], **common
                )
                return answer.choices[0].message.content or ""
            return (
                self._client.completions.create(prompt=prompt.text, **common).choices[0].text or ""
            )
        except self._errors.BadRequestError as error:
            if "seed" not in str(error).lower() or "seed" not in common:
                raise
            self._takes_seeds = False
            return self._request(prompt, seed)

    def _within_retries(self, ask: Callable[[], str], prompt: Prompt) -> str:
        """Repeats a request that may succeed later; raises EnvironmentProblem otherwise."""
        for attempt in range(self.config.max_retries + 1):
            if self.stopping.is_set():
                raise EnvironmentProblem("the run is being stopped")
            try:
                return ask()
            except self._errors.APIConnectionError as error:
                late = isinstance(error, self._errors.APITimeoutError)
                problem, pause = (
                    f"gave no answer within {self.config.timeout:g} s"
                    if late
                    else "cannot be reached",
                    None,
                )
            except self._errors.APIStatusError as error:
                if error.status_code < 500 and error.status_code not in _WORTH_A_RETRY:
                    raise self._refused(error, prompt) from error
                problem, pause = _refusal(error), _retry_after(error)
            except (
                self._errors.OpenAIError,
                AttributeError,
                IndexError,
                TypeError,
                ValueError,
            ) as error:
                raise self._not_a_completion(error) from error
            if attempt < self.config.max_retries:
                self.stopping.wait(
                    min(LONGEST_PAUSE, pause or FIRST_PAUSE * 2**attempt) * random.uniform(1, 1.25)
                )
        sent = f"{self.config.max_retries + 1} times" if self.config.max_retries else "once"
        raise EnvironmentProblem(
            f"{self.config.base_url}: the server of {self.section} {problem} (asked {sent})."
            " Finished texts are kept: check that it runs and run the same command again, or raise"
            f" {self.section}.timeout or {self.section}.max_retries, or lower"
            f" {self.section}.concurrency."
        )

    def _refused(self, error: Any, prompt: Prompt) -> EnvironmentProblem:
        """Returns the error for a request that the server refuses permanently."""
        variable = self.config.api_key_variable
        remedy = {
            401: f"Put the server's key into the environment variable {variable}",
            403: f"Put the server's key into the environment variable {variable}",
            404: f"Set {self.section}.model to a name that the server knows, and check the end of"
            " base_url (often /v1)",
        }.get(error.status_code, f"Fix {self.section}")
        problem = f"{self.config.base_url}: the server of {self.section} {_refusal(error)},"
        problem += f" asked about question {prompt.question_id}"
        return EnvironmentProblem(f"{problem}. {remedy}; finished texts are kept.")

    def _not_a_completion(self, error: Exception) -> EnvironmentProblem:
        """Returns the error for a response that is not a completion."""
        return EnvironmentProblem(
            f"{self.config.base_url}: the response of {self.section}'s server is not a completion"
            f" ({shorten(str(error))}). Check that base_url names an OpenAI-compatible server"
            " (it often ends in /v1); finished texts are kept."
        )


def _well_formed(text: str) -> str:
    """Replaces halves of surrogate pairs by U+FFFD.

    A server can cut a character in two at its token limit.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _refusal(error: Any) -> str:
    """Formats the server's refusal with its status and message."""
    body = error.body.get("message") if isinstance(error.body, dict) else None
    return f"refuses with status {error.status_code} ({shorten(str(body or error.message), 200)})"


def _retry_after(error: Any) -> float | None:
    """Returns the seconds of a Retry-After header; its other form, a date, is ignored."""
    try:
        return max(0.0, float(error.response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None


class EndpointWriter:
    """Sends one request at a time; several writers share one server."""

    def __init__(self, endpoint: Endpoint):
        self._endpoint = endpoint

    def write(self, prompts: Sequence[Prompt], seed: int) -> list[str]:
        return [self._endpoint.text(prompt, seed) for prompt in prompts]

    def stop(self) -> None:
        self._endpoint.stopping.set()

    def close(self) -> None:
        """Does nothing: the client is shared with other writers."""
