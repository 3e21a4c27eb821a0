"""The stage of Ray Data: parts are read, answered by actors, and written. Imports Ray."""

import logging
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import ray
import ray.data
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasink
from ray.exceptions import ActorDiedError, RayActorError, RayError

from m7b.completions import parse_object
from m7b.scale.answerer import Answerer
from m7b.scale.cluster import Crew, translate_error
from m7b.scale.folder import Tally, tally_answers, write_part
from m7b.scale.parts import Part

_RETRIES = 3
"""How often a part is begun again after its actor died: a row that kills each is given up."""

_MOST_LOST = 16
"""How many parts may be given up: what fails more often is no row's fault, but a full disk or the like."""


def answer_parts(
    parts: Sequence[Part], target: Path, settings: Mapping[str, Any], crew: Crew
) -> tuple[Tally, str]:
    """Answer `parts` by actors on the cluster, each into a file in `target`.

    Returns the tally, and why there are parts without a file, if there are: the others are not held up.

    Args:
        parts: what is to be answered.
        target: a folder.
        settings: the arguments of `Answerer`.
        crew: how many actors of how many threads.

    Raises:
        M7bError: an actor cannot load the model.
    """
    failures = _set_up_ray()
    sink = _Answers(target)
    # Reading and writing claim no CPU, so actors may have all of them and still be fed.
    dataset = ray.data.read_datasource(
        _Requests(parts), num_cpus=0, concurrency=2, override_num_blocks=len(parts)
    ).map_batches(
        Answerer,
        fn_constructor_kwargs=dict(settings),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=crew.n_actors, max_tasks_in_flight_per_actor=2),
        num_cpus=crew.n_threads,
        max_restarts=-1,
        max_task_retries=_RETRIES,
    )
    try:
        dataset.write_datasink(sink, ray_remote_args={"num_cpus": 0}, concurrency=2)
    except RayError as error:
        if isinstance(error, ActorDiedError) and error.actor_init_failed:
            raise translate_error(str(error)) from None
        failures.reason = failures.reason or _find_reason(error)
    return sink.tally, failures.reason


class _Failures(logging.Handler):
    """Listens to what Ray logs of parts that it gives up; `reason` is why the first was."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.reason = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] and not self.reason:
            self.reason = _find_reason(record.exc_info[1])


def _find_reason(error: BaseException) -> str:
    """What went wrong, which is at the end of all that Ray has to say."""
    if isinstance(error, RayActorError):
        return "every actor that they were given to died"
    return str(error).strip().rpartition("\n")[2]


def _set_up_ray() -> _Failures:
    """Let blocks be parts, and parts fail alone; only bars are to be seen, and these on a terminal."""
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = None
    context.max_errored_blocks = _MOST_LOST
    context.enable_progress_bars = sys.stdout.isatty()
    context.enable_rich_progress_bars, context.use_ray_tqdm = True, False
    logger, failures = logging.getLogger("ray.data"), _Failures()
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)
    logger.addHandler(failures)
    # The release that drops these arguments is beyond those that m7b[ray] takes.
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
    return failures


class _Requests(Datasource):  # type: ignore[misc]
    """The rows of parts, read on the machine where the files are: that of the command."""

    supports_distributed_reads = False

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__()
        self._parts = parts

    def get_name(self) -> str:
        return "Requests"

    def estimate_inmemory_data_size(self) -> None:
        return None

    def get_read_tasks(self, parallelism: int, *args: Any, **options: Any) -> list[ReadTask]:
        return [ReadTask(_Reading(part), _describe(part)) for part in self._parts]


@dataclass(frozen=True, slots=True)
class _Reading:
    """Reads one part."""

    part: Part

    def __call__(self) -> Iterable[pyarrow.Table]:
        requests = pyarrow.array(self.part.read(), pyarrow.large_binary())
        yield pyarrow.table({"part": [self.part.name] * len(requests), "request": requests})


def _describe(part: Part) -> BlockMetadata:
    return BlockMetadata(num_rows=part.n_rows, size_bytes=None, exec_stats=None, input_files=None)


class _Answers(Datasink):  # type: ignore[misc]
    """Files of answers, written on the machine of the command."""

    supports_distributed_writes = False

    def __init__(self, target: Path) -> None:
        self._target = target
        self.tally = Tally()

    def write(self, blocks: Iterable[pyarrow.Table], ctx: Any) -> Tally:
        tally = Tally()
        for block in blocks:
            for name in dict.fromkeys(block["part"].to_pylist()):
                chosen = block.filter(pyarrow.compute.equal(block["part"], name))
                texts = chosen["answer"].to_pylist()
                write_part(self._target, name, "".join(text + "\n" for text in texts))
                tally += tally_answers(parse_object(text.encode()) for text in texts)
        return tally

    def on_write_complete(self, write_result: Any) -> None:
        self.tally = sum(write_result.write_returns, Tally())
