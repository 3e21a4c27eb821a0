"""How fast an accelerator reads prompts and decodes, beside transformers: a table for docs/benchmarks.md.

python -m tests.device.measure [--device cpu --tiny]
"""

import argparse
import gc
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager

import torch

from m7b.bench import PeerName
from m7b.bench.figures import Measurement, summarize
from m7b.bench.formats import Table, markdown
from m7b.bench.runs import Runner, Sweep, Work, run_in_turn
from m7b.errors import OutOfResources
from m7b.generation import EngineOptions
from m7b.progress import run_with_progress
from m7b.runtime.bench.measure import load_runner
from m7b.runtime.bench.peers import Task, open_peer
from m7b.runtime.checkpoints.random import random_checkpoint
from m7b.runtime.machine import copy_bandwidth, describe_machine, multiply_rate
from m7b.runtime.model.config import ModelConfig
from m7b.runtime.placement import memory_errors
from m7b.variants import VARIANTS
from tests.support.tiny import CONFIG

COLUMNS = (
    "engine",
    "weights",
    "depth",
    "batch",
    "decode tok/s",
    "of copying",
    "prefill tok/s",
    "of multiplying",
)
PROMPT = {False: 4096, True: 16}
DEPTHS = {False: (0, 4096, 16384), True: (0, 40)}
BATCHES = {False: (1, 8, 32), True: (1, 3)}
ENGINES = ("m7b", PeerName.TRANSFORMERS)
DTYPE = torch.bfloat16


class Bench:
    """One model on one device.

    Args:
        device: its name.
        variant: whose shape runs, with random weights.
        is_tiny: whether a tiny model runs instead, to try this program.
    """

    def __init__(self, device: str, variant: str, is_tiny: bool) -> None:
        self._device, self._is_tiny = device, is_tiny
        self._name = "tiny" if is_tiny else variant
        self._config = CONFIG if is_tiny else ModelConfig.of_variant(VARIANTS[variant])
        self._copy_gbs = copy_bandwidth(device)
        self._multiply = multiply_rate(device, DTYPE, 256 if is_tiny else 8192)

    def describe(self) -> str:
        """What is measured, and the limits of its device."""
        machine = describe_machine()
        cards = {card.device: card.name for card in machine.accelerators}
        name = cards.get(self._device, cards.get(f"{self._device}:0", machine.cpu))
        return (
            f"{self._name}, random weights, on {name}: copies at {self._copy_gbs:,.0f} GB/s, multiplies at "
            f"{self._multiply:,.1f} TFLOP/s in bfloat16; torch {torch.__version__}"
        )

    def measure(self, quant: str, depth: int) -> Iterator[tuple[str, ...]]:
        """The rows of the table for one kind of weights at one depth."""
        for engine in ENGINES:
            sweep = Sweep(PROMPT[self._is_tiny], 4 if self._is_tiny else 64, (depth,), 2, 1)
            try:
                with self._open(engine, quant, sweep) as runner:
                    for batch in BATCHES[self._is_tiny]:
                        yield self._run(runner, quant, sweep, batch)
            except OutOfResources as error:
                note(str(error))
                yield (engine, quant, str(depth), "-", "does not fit", "", "", "")
            free_memory()

    @contextmanager
    def _open(self, engine: str, quant: str, sweep: Sweep) -> Iterator[Runner]:
        checkpoint = random_checkpoint(self._name, self._config)
        chosen, most = None if quant == "bfloat16" else quant, max(BATCHES[self._is_tiny])
        note(f"loading {engine} in {quant} for {sweep.ctx_size} tokens")
        with ExitStack() as stack, memory_errors():
            if engine != "m7b":
                shape = (checkpoint, self._config, DTYPE, chosen, sweep.ctx_size, True, most, self._device)
                yield stack.enter_context(open_peer(PeerName(engine), Task(*shape)))
                return
            options = EngineOptions(
                dtype="bfloat16", quant=chosen, device=self._device, ctx_size=sweep.ctx_size
            )
            loading = load_runner(self._name, checkpoint, options, is_static=True)
            yield run_with_progress(loading, lambda _: None)

    def _run(self, runner: Runner, quant: str, sweep: Sweep, batch: int) -> tuple[str, ...]:
        (depth,) = sweep.depths
        work = Work(sweep.prompt_tokens if batch == 1 else 0, sweep.decode_tokens, depth, batch)
        try:
            with memory_errors():
                samples = run_with_progress(_repeat(runner, work, sweep), note)
        except OutOfResources as error:
            note(str(error))
            return (runner.name, quant, str(depth), str(batch), "does not fit", "", "", "")
        found = summarize(runner.name, work, [one for (one,) in samples], runner.reads, self._copy_gbs)
        return (runner.name, quant, str(depth), str(batch), *self._format(found))

    def _format(self, found: Measurement) -> Iterator[str]:
        yield f"{found.decode_tps:,.1f}"
        yield f"{found.percent_of_limit:.0f} %"
        yield f"{found.prefill_tps:,.0f}" if found.prefill_tps else ""
        flops = 2e-12 * self._config.n_params * (found.prefill_tps or 0)
        yield f"{flops / self._multiply * 100:.0f} %" if flops else ""


def _repeat(runner: Runner, work: Work, sweep: Sweep) -> Generator[str, None, list[tuple]]:
    return (yield from run_in_turn([runner], work, sweep))


def note(text: str) -> None:
    """Tell what goes on."""
    print(text, file=sys.stderr, flush=True)


def free_memory() -> None:
    """Give back what the last engine had."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure an accelerator.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--variant", default="instruct-v0.3", choices=sorted(VARIANTS))
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try this program")
    given = parser.parse_args()
    bench = Bench(given.device, given.variant, given.tiny)
    rows = [
        row
        for quant in ("bfloat16", "nf4")
        for depth in DEPTHS[given.tiny]
        for row in bench.measure(quant, depth)
    ]
    print(bench.describe(), markdown(Table(COLUMNS, tuple(rows), 2)), sep="\n\n", end="")


if __name__ == "__main__":
    main()
