"""Counters for Prometheus."""

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, generate_latest

from m7b.server.work import Answering, EngineThread


class Metrics:
    """What the server has done, and how much it has to do."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self, engine: EngineThread) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter("m7b_requests", "Requests that were answered.")
        self._prompt_tokens = self._counter("m7b_prompt_tokens", "Tokens of their prompts.")
        self._cached_tokens = self._counter(
            "m7b_cached_tokens", "Tokens of prompts that were not read again."
        )
        self._answer_tokens = self._counter("m7b_answer_tokens", "Tokens of their answers.")
        waiting = Gauge("m7b_requests_waiting", "Requests that wait.", registry=self._registry)
        waiting.set_function(lambda: engine.load.n_waiting)
        running = Gauge("m7b_sequences_running", "Sequences that run.", registry=self._registry)
        running.set_function(lambda: engine.load.n_running)

    def count(self, answering: Answering) -> None:
        """Count a request that is over."""
        self._requests.inc()
        for completion in answering.completions:
            for choice in completion.choices[:1]:
                self._prompt_tokens.inc(choice.finished.usage.prompt_tokens)
                self._cached_tokens.inc(choice.finished.usage.reused_tokens)
            for choice in completion.choices:
                self._answer_tokens.inc(choice.finished.usage.completion_tokens)

    def format(self) -> bytes:
        """The figures as Prometheus reads them."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self._registry)
