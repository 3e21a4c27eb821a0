"""How fast answers to real texts are decoded, with guesses at the next tokens and without.

The answers are given, a token at a time: so a model with random weights does the work of one that would say
them, and every engine decodes the same text. What is guessed, and whether it comes true, depends on the text
alone.
"""

from collections.abc import Generator, Sequence
from contextlib import ExitStack

from m7b.bench import PeerName
from m7b.bench.drafts import DraftSpeed, DraftsReport, compute_draft_speed
from m7b.bench.runs import Answered, KnownAnswer, Runner
from m7b.errors import ContextOverflow
from m7b.runtime import machine
from m7b.runtime.bench.measure import load_runner
from m7b.runtime.bench.peers import open_peer
from m7b.runtime.bench.subject import Subject, make_task

_SPARE = 64  # tokens of guesses past the end of a text, which some engines write before they drop them


def measure_drafts(
    subject: Subject, texts: Sequence[KnownAnswer], repetitions: int, peer: PeerName | None
) -> Generator[str, None, DraftsReport]:
    """Decode the answers of `texts`, plainly and with guesses in turn; tells what goes on.

    One repetition of each comes before those that count.

    Raises:
        ContextOverflow: a text does not fit the context.
        OutOfResources: memory or disk do not suffice.
    """
    longest, most = max(len(text.prompt + text.answer) for text in texts), subject.config.max_seq_len
    if longest > most:
        raise ContextOverflow(
            f"a text has {longest} tokens, {subject.name} a context of {most}", hint="name another model"
        )
    speeds: list[DraftSpeed] = []
    ours = yield from load_runner(subject.name, subject.checkpoint, subject.options, subject.mix)
    with ExitStack() as stack:
        runners: list[Runner] = [ours]
        if peer:
            yield f"loading the model into {peer}…"
            runners.append(stack.enter_context(open_peer(peer, make_task(subject, longest + _SPARE))))
        for text in texts:
            pairs = yield from _answer_in_turn(runners, text, repetitions)
            speeds += (
                compute_draft_speed(runner.name, text, [turn[i] for turn in pairs])
                for i, runner in enumerate(runners)
            )
    return DraftsReport(
        machine=machine.as_json(machine.describe_machine()),
        model=subject.about | {"weights": ours.reads.weights},
        speeds=tuple(speeds),
    )


def _answer_in_turn(
    runners: Sequence[Runner], text: KnownAnswer, repetitions: int
) -> Generator[str, None, list[list[tuple[Answered, Answered]]]]:
    """What each runner needs for the answer, without guesses and with them, by repetition."""
    pairs = []
    for turn in range(repetitions + 1):
        yield f"{text.name}: " + (f"repetition {turn} of {repetitions}" if turn else "warming up")
        pairs.append([(each.answer(text, drafts=False), each.answer(text, drafts=True)) for each in runners])
    return pairs[1:]
