"""How the workers of one `edgeprune sweep` are run: threads that wait for processes here, or tasks of Ray."""

import importlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from edgeprune.errors import EdgepruneError
from edgeprune.sweeps.store import Store
from edgeprune.sweeps.worker import work

REFRESH_SECONDS = 0.5


def run_local(folder: Path, workers: int, show: Callable[[], None]) -> None:
    """Run a sweep's trials here, `workers` at a time; `show` is called about twice a second.

    Raises:
        EdgepruneError: One that a worker raised; the others end their trials first.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(workers, "sweep") as pool:
        try:
            running = [pool.submit(lambda: work(Store.open(folder), stop)) for _ in range(workers)]
            pending, failed = set(running), False
            while pending and not failed:
                done, pending = wait(running, REFRESH_SECONDS, FIRST_EXCEPTION)
                failed = any(one.exception() for one in done)
                show()
        finally:
            stop.set()
    show()
    for one in running:
        one.result()


def run_ray(folder: Path, workers: int, show: Callable[[], None], cpus: float = 1.0, gpus: float = 0.0) -> None:
    """Run a sweep's trials as tasks of a Ray cluster: that of `$RAY_ADDRESS`, or one that is started here.

    Args:
        folder: The sweep's, on a disk that every node sees under this path.
        workers: How many tasks.
        show: Called about twice a second.
        cpus: Of each task.
        gpus: Of each task.

    Raises:
        EdgepruneError: Ray is missing, or a worker raised one.
    """
    try:
        library: Any = importlib.import_module("ray")
    except ImportError:
        raise EdgepruneError("--executor ray needs Ray, which is not installed; pip install 'edgeprune[ray]'") from None
    started = not library.is_initialized()
    if started:
        address = os.environ.get("RAY_ADDRESS")
        started_here = {} if address else {"num_cpus": max(1, round(workers * cpus)), "include_dashboard": False}
        library.init(log_to_driver=False, logging_level="ERROR", configure_logging=False, **started_here)
    try:
        task = library.remote(num_cpus=cpus, num_gpus=gpus, max_retries=-1)(_ray_worker)
        pending = [task.remote(str(folder.absolute()), str(Path.cwd())) for _ in range(workers)]
        while pending:
            done, pending = library.wait(pending, timeout=REFRESH_SECONDS)
            show()
            for item in done:
                message = library.get(item)
                if message:
                    raise EdgepruneError(message)
    finally:
        if started:
            library.shutdown()
    show()


def _ray_worker(folder: str, where: str) -> str | None:
    """A worker inside Ray; returns a user's mistake, because Ray would wrap it."""
    os.chdir(where)
    try:
        work(Store.open(Path(folder)), threading.Event())
    except EdgepruneError as error:
        return str(error)
    return None
