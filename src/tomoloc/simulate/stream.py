"""Endless samples for training, made in other processes while the last one is used."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from logging.handlers import QueueHandler
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from tomoloc.simulate.recipe import Recipe
from tomoloc.types import Sample

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from tomoloc.simulate.scene import Simulator

__all__ = ["map_in_order", "stream"]

Item = TypeVar("Item")
Result = TypeVar("Result")

# Bytes that go through the pipe without the copies of `Connection` are four times as fast.
_RAW = hasattr(os, "readv")
THREAD_COUNTS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def stream(recipe: Recipe, *, seed: int, workers: int = 0, start: int = 0) -> Generator[Sample]:
    """Make samples after a recipe without end.

    Parameters
    ----------
    recipe : Recipe
    seed : int
        Sample i is a function of the seed and i alone, whatever the number of workers; it is the
        one that ``tomoloc simulate --seed`` writes as number i.
    workers : int
        Processes that make samples ahead, at most two each; with 0 they are made here, when they
        are asked for. Scripts need the usual ``if __name__ == "__main__"`` around what starts them.
    start : int
        Number of the first sample, to go on with an earlier stream.

    Yields
    ------
    Sample
        In order. Close the iterator, or let go of it, to end the processes.

    Raises
    ------
    ValueError
        If `workers` or `start` is negative; or whatever goes wrong with a sample, as its own kind
        of error.
    ChildProcessError
        If a process is killed.
    """
    if start < 0:
        raise ValueError(f"start must not be negative; got {start}")
    numbers = range(start, sys.maxsize)
    return map_in_order(_Numbered(recipe, seed), numbers, workers=workers)


@dataclass
class _Numbered:
    """Makes the sample of a number; travels to other processes without its simulator."""

    recipe: Recipe
    seed: int
    simulator: Simulator | None = field(default=None, init=False)

    def __call__(self, number: int) -> Sample:
        from tomoloc.simulate.scene import Simulator

        if self.simulator is None:
            self.simulator = Simulator(self.recipe)
        rng = np.random.default_rng([self.seed, number])
        scene = self.simulator.draw(rng, name=f"{self.recipe.name}_{number:03d}")
        return self.simulator.render(scene)


def map_in_order(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int
) -> Generator[Result]:
    """Apply a function to items in other processes and yield the results in order.

    Each process takes every so-manieth item, and is at most one result ahead of what it works on.

    Parameters
    ----------
    function : callable
        Can be pickled, as can its results. Their arrays are not copied on the way.
    items : sequence
        May be an endless range.
    workers : int
        Number of processes; 0 calls the function here.

    Yields
    ------
    object
        The results. What `function` logs and raises comes out here.

    Raises
    ------
    ValueError
        If `workers` is negative.
    ChildProcessError
        If a process is killed.
    """
    if workers < 0:
        raise ValueError(f"workers must not be negative; got {workers}")
    if workers == 0:
        return (function(item) for item in items)
    return _map_in_processes(function, items, workers)


def _map_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Generator[Result]:
    workers = min(workers, len(items))
    started: list[tuple[SpawnProcess, Connection]] = []
    try:
        for first in range(workers):
            started.append(_start(function, items[first::workers], workers))
        for turn in range(len(items)):
            yield _receive(*started[turn % workers])
    finally:
        for process, connection in started:
            process.kill()
            connection.close()
        for process, _ in started:
            process.join()
            process.close()


def _start(
    function: Callable[[Any], Any], items: Sequence[Any], workers: int
) -> tuple[SpawnProcess, Connection]:
    # Forked processes would hang in OpenMP, which does not survive a fork.
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    level = logging.getLogger("tomoloc").getEffectiveLevel()
    threads = max(1, (os.cpu_count() or 1) // workers)
    process = context.Process(
        target=_work, args=(function, items, theirs, level, threads), daemon=True
    )
    with _without_interrupts():
        process.start()
    theirs.close()  # or the end of a killed process would never be seen
    return process, ours


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Let Ctrl-C wait, and let processes that are started here never see it.

    A terminal sends it to all of them; who is still importing would print a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # which would lift the block when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# -------------------------------------------------------------------------- in the other process


def _work(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    connection: Connection,
    level: int,
    threads: int,
) -> None:
    """Send the results of all items; while one is on its way, the next is in the making."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    for name in THREAD_COUNTS:
        os.environ.setdefault(name, str(threads))
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    logger = logging.getLogger("tomoloc")
    logger.handlers, logger.propagate = [QueueHandler(records)], False
    logger.setLevel(level)
    with ThreadPoolExecutor(1) as sender, contextlib.suppress(BrokenPipeError):
        sending: Future[None] | None = None
        for item in items:
            outcome = _attempt(function, item)
            logged = [records.get() for _ in range(records.qsize())]
            if sending is not None:
                sending.result()
            sending = sender.submit(_send, connection, outcome, logged)


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Outcome(NamedTuple):
    """A result and an error, one of them None, pickled: arrays stay where they are in memory."""

    head: bytes
    arrays: list[memoryview]


def _attempt(function: Callable[[Any], Any], item: Any) -> _Outcome:
    try:
        return _pack(function(item), None)
    except BaseException as error:  # noqa: BLE001  whatever it is, the parent raises it
        error.add_note(f"In another process:\n{''.join(traceback.format_exception(error))}")
        try:
            outcome = _pack(None, error)
            pickle.loads(outcome.head, buffers=outcome.arrays)
        except Exception:  # noqa: BLE001  errors with arguments of their own often cannot travel
            return _pack(None, RuntimeError(f"{type(error).__name__}: {error}"))
        return outcome


def _pack(result: Any, error: BaseException | None) -> _Outcome:
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps((result, error), protocol=5, buffer_callback=buffers.append)
    return _Outcome(head, [buffer.raw() for buffer in buffers])


# -------------------------------------------------------------------------------- between the two


def _send(connection: Connection, outcome: _Outcome, logged: list[logging.LogRecord]) -> None:
    connection.send((logged, outcome.head, [array.nbytes for array in outcome.arrays]))
    for array in outcome.arrays:
        _pour(connection, array)


def _pour(connection: Connection, array: memoryview) -> None:
    if not _RAW:
        connection.send_bytes(array)
    while _RAW and array:
        array = array[os.write(connection.fileno(), array) :]


def _fill(connection: Connection, array: memoryview) -> None:
    if not _RAW:
        connection.recv_bytes_into(array)
    while _RAW and array:
        n = os.readv(connection.fileno(), [array])
        if not n:
            raise EOFError
        array = array[n:]


def _receive(process: SpawnProcess, connection: Connection) -> Any:
    try:
        logged, head, sizes = connection.recv()
        arrays = [bytearray(size) for size in sizes]
        for array in arrays:
            _fill(connection, memoryview(array))
    except (EOFError, OSError) as error:
        process.join()
        raise ChildProcessError(_describe_end(process.exitcode)) from error
    for record in logged:
        logging.getLogger(record.name).handle(record)
    result, problem = pickle.loads(head, buffers=arrays)
    if problem is not None:
        raise problem
    return result


def _describe_end(code: int | None) -> str:
    if code is not None and code < 0:
        return (
            f"a worker process was killed ({signal.Signals(-code).name}); where memory ran out,"
            " use fewer workers or a smaller specimen"
        )
    return (
        f"a worker process ended early (exit code {code}); a script that starts workers must do so"
        ' below if __name__ == "__main__"'
    )
