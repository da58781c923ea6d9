"""Several worker processes on one machine: one for each GPU, or for each group of CPUs. Each pulls the next free shard.

A process sees only its own GPU, and runs on the CPUs that are near it. All have the caller's number of threads, because
another number changes the last bits of the features.
"""

import logging
import multiprocessing
import os
import pickle
import signal
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from vitbackbone.contract import Backbone
from vitbackbone.store.records import Snapshot
from vitbackbone.store.workers.pull import pull
from vitbackbone.store.workers.shard_job import Job, Tally
from vitbackbone.store.workers.slices import Slice

GRACE = 20  # seconds that a process has to give its lease back
NODES = Path("/sys/devices/system/node")
log = logging.getLogger("vitbackbone")


def all_devices() -> list[str]:
    """Return each GPU; without a GPU, "cpu" for each group of CPUs that shares memory (NUMA node)."""
    if torch.cuda.is_available():
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["cpu"] * max(1, len(_nodes()))


def pull_on_devices(
    job: Job, backbone: Backbone, snapshot: Snapshot, mine: Slice, devices: Sequence[str]
) -> Generator[Tally, None, None]:
    """Compute the shards of a slice with one process for each of `devices`, and yield a tally for each batch.

    A process that is killed loses its current shard, which another takes. A process ends when each shard is done; one
    that is still at work then, because it is slow or hangs, is stopped. Raises the exception of a process that fails,
    and `ChildProcessError` if none has ended its work.
    """
    context = multiprocessing.get_context("spawn")
    running: dict[Connection, tuple[str, Any]] = {}
    done = False
    try:
        for number, device in enumerate(devices):
            ours, theirs = context.Pipe(duplex=False)
            variables, seen = _variables(device)
            work = (theirs, job, backbone, snapshot, mine, seen, torch.get_num_threads(), _cpus(device, number))
            process = context.Process(target=_work, args=work, name=f"extract-{device}")
            with _environment(variables), _without_interrupts():
                _start(process)
            theirs.close()
            running[ours] = (device, process)
        while ready := wait(list(running), 0 if done else None):
            for pipe in ready:
                assert isinstance(pipe, Connection)
                try:
                    message = pipe.recv()
                except EOFError:
                    device, process = running.pop(pipe)
                    process.join()
                    done |= process.exitcode == 0
                    if process.exitcode:
                        log.warning("the process of %s ended with exit code %d", device, process.exitcode)
                    continue
                if isinstance(message, BaseException):
                    raise message
                yield message
        if not done:
            raise ChildProcessError(
                "all processes ended early. If they were killed, memory ran out most often: use fewer devices, fewer "
                "workers or a smaller batch size, and run the same extraction again; complete shards are kept. If they "
                'could not begin, the script must call `extract` under `if __name__ == "__main__":`'
            )
    finally:
        _stop([process for _, process in running.values()])


def _work(
    pipe: Connection,
    job: Job,
    backbone: Backbone,
    snapshot: Snapshot,
    mine: Slice,
    device: str,
    threads: int,
    cpus: Sequence[int],
) -> None:
    """The main function of a process."""
    signal.signal(signal.SIGTERM, _terminate)
    if cpus:
        os.sched_setaffinity(0, cpus)
    torch.set_num_threads(threads)
    own = Job(**{**vars(job), "device": device})
    try:
        with closing(pull(own, backbone, snapshot, mine)) as tallies:
            for tally in tallies:
                pipe.send(tally)
    except BrokenPipeError:
        return  # the parent was killed
    except Exception as error:
        pipe.send(error)


def _start(process: Any) -> None:
    """Start a process. Raises `ValueError` if its work cannot be sent to it."""
    try:
        process.start()
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise ValueError(
            f"the backbone cannot be sent to other processes ({error}); it may have no hooks and no parts that are "
            "lambdas or defined inside a function"
        ) from error


def _terminate(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _stop(processes: Sequence[Any]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(GRACE)
        if process.is_alive():
            process.kill()


def _variables(device: str) -> tuple[dict[str, str], str]:
    """Return the environment of the process for a device, and the device's name in it."""
    variables = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    if not device.startswith("cuda"):
        return variables, device
    number = int(device.partition(":")[2] or 0)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return variables | {"CUDA_VISIBLE_DEVICES": visible.split(",")[number] if visible else str(number)}, "cuda:0"


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for processes that the block starts: they import torch before they can set any."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Keep Ctrl-C from processes that the block starts, from their first instruction on: it reaches every process of
    the terminal, and the parent stops them."""
    resource_tracker.ensure_running()  # its start would let Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _nodes() -> list[set[int]]:
    """Return the CPUs of each NUMA node that this process may use; empty if the system does not say."""
    nodes = []
    for file in sorted(NODES.glob("node[0-9]*/cpulist")):
        cpus = _parse(file.read_text()) & os.sched_getaffinity(0)
        if cpus:
            nodes.append(cpus)
    return nodes


def _cpus(device: str, number: int) -> list[int]:
    """Return the CPUs near a device; empty if all are equally near."""
    nodes = _nodes()
    if len(nodes) < 2:
        return []
    if not device.startswith("cuda"):
        return sorted(nodes[number % len(nodes)])
    about: Any = torch.cuda.get_device_properties(device)  # torch does not declare all of its fields
    address = f"{about.pci_domain_id:04x}:{about.pci_bus_id:02x}:{about.pci_device_id:02x}.0"
    try:
        node = int(Path(f"/sys/bus/pci/devices/{address}/numa_node").read_text())
    except (OSError, ValueError):
        return []
    return sorted(nodes[node]) if 0 <= node < len(nodes) else []


def _parse(text: str) -> set[int]:
    """Read a list of CPUs such as "0-3,8"."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cpus |= set(range(int(first), int(last or first) + 1))
    return cpus
