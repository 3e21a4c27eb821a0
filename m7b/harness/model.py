"""Our engine as a model of lm-eval: likelihoods, texts read to their end, and answers.

What requests have in common, such as examples and a question, is read once, and they run beside each other.
Texts are cut into ids, and these to the context, as lm-eval's `hf` does it, so scores compare.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string

from m7b.completions import Completion, CompletionRequest
from m7b.errors import UsageError
from m7b.generation import EngineOptions, JudgementHandle, Likelihood, SamplingParams, read_adapters
from m7b.harness.answers import Answers, name_requests
from m7b.models import Model, ModelChoice, load_model
from m7b.tokenizer import Tokenizer, encode_special

_MAX_TOKENS = 256  # of an answer where the task does not say, as in lm-eval's own models
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty")
_IDLE = {
    "do_sample",
    "until",
    "max_gen_toks",
    "use_cache",
    "num_beams",
    "seed",
}  # read elsewhere, or of no effect

Progress = Callable[[str, int, int], object]
"""Called with what is being done, how many of it are done, and of how many."""


@dataclass(frozen=True, slots=True)
class _Ending:
    """One request for a likelihood: where it stands in the list of them, and its last id."""

    at: int
    final: int


@register_model("m7b")
class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A model of lm-eval.

    Args:
        pretrained: a variant, a path, or what `m7b list` shows; or a model that is loaded.
        parallel: how many requests run at once; as many as pay and fit if not given.
        answers: where what the model says is kept, and looked up before it is asked.
        report: told of the progress.
        chat_template: `v1`, `v3` or a Jinja file, instead of the model's own.
        **options: fields of `EngineOptions`, as `quant=q8_0`.

    Attributes:
        model: as it is loaded.
        answers: as given, or in memory.
        report: as given.

    Raises:
        UsageError: an option is unknown or out of range.
    """

    def __init__(
        self,
        pretrained: str | Model = "demo",
        *,
        parallel: int | None = None,
        answers: Answers | None = None,
        report: Progress | None = None,
        chat_template: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if isinstance(pretrained, str):
            settings = _read_options(options)
            pretrained = load_model(ModelChoice.from_name(pretrained), settings, chat_template=chat_template)
        self.model: Model = pretrained
        self._parallel = parallel
        self.answers = Answers(None, {}) if answers is None else answers
        self.report: Progress = report or (lambda what, done, total: None)
        self._written: dict[str, list[int]] = {}  # the ids of conversations, by the text that stands for them

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> Self:
        """Load the model that lm-eval's `--model_args` name.

        Its own options are left out: it gives everybody a device of CUDA, and requests run together anyway.
        """
        return cls(**arg_dict)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Self:
        """The same, where they are one text."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string))

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        eos = self.model.tokenizer.eos_id
        return min(self.model.stop_ids) if eos is None else eos

    @property
    def prefix_token_id(self) -> int:
        """The id in front of a text that has nothing before it."""
        bos = self.model.tokenizer.bos_id
        return self.eot_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        """The tokens that the context holds."""
        return self.model.ctx_size

    @property
    def max_gen_toks(self) -> int:
        """The most tokens of an answer where the task does not say."""
        return _MAX_TOKENS

    @property
    def tokenizer_name(self) -> str:
        """What tells prompts made for this model from others."""
        return f"m7b__{self.model.name}".replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The chat template as it is written down, for the record of a run."""
        return self.model.chat_template.source if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text that stands for the ids of a conversation, which `tok_encode` turns it back into.

        Raises:
            UsageError: the model cannot chat, or its template does not take these messages.
        """
        messages: list[dict[str, Any]] = [dict(message) for message in chat_history]
        if not add_generation_prompt:
            messages[-1]["prefix"] = True
        ids = self.model.chat_template.encode(messages)
        text = _write(self.model.tokenizer, ids)
        if self._written.setdefault(text, ids) != ids:
            raise UsageError(
                "two conversations look alike, as a message spells a control token",
                hint="leave out that question",
            )
        return text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The ids of a text, or of a conversation that `apply_chat_template` wrote."""
        if string in self._written:
            return list(self._written[string])
        tokenizer = self.model.tokenizer
        if add_special_tokens is None and self._begins_like_a_conversation(string):
            return encode_special(tokenizer, string, bos=tokenizer.adds_bos)
        bos = tokenizer.adds_bos if add_special_tokens is None else add_special_tokens
        return tokenizer.encode(string, bos=bos and tokenizer.bos_id is not None)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The ids of both, cut where the context ends. Behind a conversation, text is text."""
        if ids := self._written.get(context):
            return list(ids), self.model.tokenizer.encode(continuation, bos=False, inside=True)
        before, behind = super()._encode_pair(context, continuation)
        return before, behind

    def _begins_like_a_conversation(self, text: str) -> bool:
        """Whether `text` comes from a chat template of an earlier run, whose prompts lm-eval has kept."""
        return bool(self._written) and any(text.startswith(known) for known in self._written)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each text as a whole, read in windows of the context that do not overlap."""
        pairs: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for at, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in windows:
                pairs.append(make_disjoint_window(window))
                owners.append(at)
        found = [0.0] * len(requests)
        for at, likelihood in zip(owners, self._judge_all("reading texts", pairs), strict=True):
            found[at] += likelihood.logprob
        for request, value in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return found

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context, ending) for _, context, ending in requests]
        likelihoods = self._judge_all("judging answers", pairs)
        found = [(each.logprob, each.is_greedy) for each in likelihoods]
        for (texts, _, _), answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return found

    def _judge_all(self, what: str, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Likelihood]:
        """How likely each ending is behind its context; what is known is not read again."""
        names = name_requests("judge", pairs)
        known = [name in self.answers for name in names]
        # Endings that differ in their last token are one reading.
        groups: dict[tuple[tuple[int, ...], tuple[int, ...]], list[_Ending]] = defaultdict(list)
        for at, (context, ending) in enumerate(pairs):
            if not ending and not known[at]:
                self.answers.keep(names[at], [0.0, True])
            elif not known[at]:
                before, behind = _cut_to_fit(context, ending, self.max_length)
                groups[tuple(before), tuple(behind[:-1])].append(_Ending(at, behind[-1]))
        n_done = len(pairs) - sum(len(group) for group in groups.values())
        for group, likelihoods in self._judge_groups(groups):
            for each, likelihood in zip(group, likelihoods, strict=True):
                self.answers.keep(names[each.at], [likelihood.logprob, likelihood.is_greedy])
            n_done += len(group)
            self.report(what, n_done, len(pairs))
        return [Likelihood(*self.answers[name]) for name in names]

    def _judge_groups(
        self, groups: dict[tuple[tuple[int, ...], tuple[int, ...]], list[_Ending]]
    ) -> Iterator[tuple[list[_Ending], Sequence[Likelihood]]]:
        """Each group and its likelihoods, as they are done."""
        engine = self.model.engine
        waiting = sorted(groups, reverse=True)  # those that begin alike are neighbours
        longest = max((len(context) + len(ending) for context, ending in waiting), default=1)
        # A pass reads a chunk of tokens, and endings are short.
        n_at_once = self._parallel or 2 * engine.suggest_parallel(longest)
        running: list[tuple[list[_Ending], JudgementHandle]] = []
        try:
            while waiting or running:
                while waiting and len(running) < n_at_once:
                    context, ending = waiting.pop()
                    group = groups[context, ending]
                    finals = [each.final for each in group]
                    running.append((group, engine.judge(context, ending, finals)))
                engine.step()
                for group, judgement in [each for each in running if each[1].is_done]:
                    running.remove((group, judgement))
                    yield group, judgement.take()
        finally:
            for _, judgement in running:
                judgement.cancel()

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The answer to each prompt, up to a stop string."""
        return self.answer_prompts([request.args for request in requests])

    def answer_prompts(self, prompts: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """The answer to each prompt, with what lm-eval's tasks say about generation."""
        names = name_requests("generate", prompts)
        unknown = [at for at, name in enumerate(names) if name not in self.answers]
        waiting = [(at, self._begin(*prompts[at], name=names[at])) for at in reversed(unknown)]
        longest = max((len(each.ids) + each.request.params.max_tokens for _, each in waiting), default=1)
        n_at_once = self._parallel or self.model.engine.suggest_parallel(longest)
        running: list[tuple[int, Completion]] = []
        n_done = len(prompts) - len(unknown)
        try:
            while waiting or running:
                while waiting and len(running) < n_at_once:
                    running.append(waiting.pop())
                    running[-1][1].start()
                self.model.engine.step()
                for at, completion in running:
                    for _ in completion.gather():
                        pass
                    if completion.is_done:
                        context, settings = prompts[at]
                        text = _take_text(self.model.tokenizer, completion, context)
                        self.answers.keep(names[at], text)
                        self.cache_hook.add_partial("generate_until", (context, settings), text)
                        n_done += 1
                        self.report("answering", n_done, len(prompts))
                running = [each for each in running if not each[1].is_done]
        finally:
            for _, completion in running:
                completion.cancel()
        return [self.answers[name] for name in names]

    def _begin(self, context: str, settings: dict[str, Any], *, name: str) -> Completion:
        """What answers one request. Equal names draw equal answers, whatever ran before."""
        params = _read_sampling(settings, seed=int(name[:8], 16))
        room = self.max_length - params.max_tokens
        if room <= 0:
            raise UsageError(
                f"answers of {params.max_tokens} tokens leave no room in a context of {self.max_length}",
                hint="raise --ctx-size",
            )
        ids = self.tok_encode(context)[-room:] if context else [self.prefix_token_id]
        return Completion(self.model, CompletionRequest(tuple(ids), params))


def _read_options(options: dict[str, Any]) -> EngineOptions:
    """The options of the engine, by their names.

    Raises:
        UsageError: there is no such option, or its value makes no sense.
    """
    known = EngineOptions.__dataclass_fields__
    unknown = sorted(options.keys() - known.keys())
    if unknown:
        raise UsageError(
            f"there is no option {unknown[0]}",
            hint=f"there are pretrained, parallel, chat_template, {', '.join(sorted(known))}",
        )
    if "adapter" in options:
        options["adapter"] = read_adapters(options["adapter"])
    return EngineOptions(**options)


def _read_sampling(settings: dict[str, Any], seed: int) -> SamplingParams:
    """What a task says about its answers, as lm-eval reads it.

    Raises:
        UsageError: it asks for something else than sampling.
    """
    fields = normalize_gen_kwargs(settings, _MAX_TOKENS)
    unknown = sorted(fields.keys() - set(_SAMPLING) - _IDLE)
    if unknown or fields.get("num_beams", 1) != 1:
        raise UsageError(
            f"the task asks for {(unknown or ['num_beams'])[0]}, which m7b does not do",
            hint=f"it does {', '.join(_SAMPLING)}, until and max_gen_toks",
        )
    given = {name: fields[name] for name in _SAMPLING if fields.get(name) is not None}
    given["temperature"] = given.get("temperature", 1.0) if fields["do_sample"] else 0.0
    stops = tuple(stop for stop in fields["until"] if stop)
    return SamplingParams(max_tokens=fields["max_gen_toks"], stop=stops, seed=seed, **given)


def _cut_to_fit(context: list[int], ending: list[int], most: int) -> tuple[list[int], list[int]]:
    """Both, without what is too much in front: at most `most` ids are read, and the last is not.

    Raises:
        UsageError: the ending alone is too long.
    """
    if len(ending) > most:
        raise UsageError(
            f"an answer of {len(ending)} tokens does not fit a context of {most}", hint="raise --ctx-size"
        )
    return context[-(most + 1 - len(ending)) :], ending


def _write(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of `ids`, control tokens by their names."""
    names = {token: name for name, token in tokenizer.controls.items()}
    text, plain = "", []
    for token in [*ids, None]:
        if token is not None and token not in names:
            plain.append(token)
            continue
        text += tokenizer.decode(plain) + ("" if token is None else names[token])
        plain = []
    return text


def _take_text(tokenizer: Tokenizer, completion: Completion, context: str) -> str:
    """The text of an answer.

    SentencePiece writes the space before a word into its token. Tasks expect it to be gone, as if the answer
    stood alone; behind a line break it is part of the answer, such as the indentation of code.
    """
    choice = completion.choices[0]
    stands_alone = tokenizer.decode(choice.finished.tokens)
    is_of_token = choice.text.startswith(" ") and not stands_alone.startswith(" ")
    return choice.text[1:] if is_of_token and not context[-1:].isspace() else choice.text
