"""Notebook kernels that begin with PyTorch loaded: forks of a job of :mod:`medmerge.cli.jobs`, which is one itself."""

import os
import sys
from multiprocessing.connection import Connection
from typing import Any

import matplotlib
from ipykernel.kernelapp import launch_new_instance
from jupyter_client import AsyncKernelManager
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import LocalProvisioner

from medmerge.cli.jobs import Companion

LOADED = (
    "ipywidgets",
    "medmerge.pages.figures.runs",
    "medmerge.pages.report",
    "medmerge.study.run",
    "sklearn.metrics",
)
"""What takes the notebooks longest to import; jobs can be forked with it loaded."""

_LAUNCHER = "ipykernel_launcher"


def managed(companion: Companion) -> type[AsyncKernelManager]:
    """What starts a notebook's kernel in a job's companion, which has been forked to run :func:`serve`."""

    class Manager(AsyncKernelManager):
        def __init__(self, **traits: Any) -> None:
            super().__init__(**traits)
            self.provisioner = _Provisioner(companion, kernel_spec=self.kernel_spec, parent=self)

    return Manager


def serve(connection: Connection) -> None:
    """In a job's companion: a kernel, with the arguments, environment and working folder that it is sent."""
    os.setsid()  # as other kernels have it: Ctrl-C in a terminal is for the command, not for them
    try:
        arguments, environment, folder = connection.recv()
    except EOFError:
        return
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    # ipykernel names its backend in the environment, where a matplotlib that is loaded already does not look again
    matplotlib.rcParams["backend"] = os.environ.get("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    launch_new_instance(argv=[*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])


class _Provisioner(LocalProvisioner):
    """Starts a kernel in a companion where it is ipykernel of this very Python, else as usual."""

    def __init__(self, companion: Companion, **traits: Any) -> None:
        super().__init__(**traits)
        self._companion = companion

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        if cmd[0] != sys.executable or _LAUNCHER not in cmd:
            return await super().launch_kernel(cmd, **kwargs)
        self.cwd = kwargs.get("cwd") or os.getcwd()
        self._companion.connection.send((cmd[cmd.index(_LAUNCHER) + 1 :], dict(kwargs["env"]), str(self.cwd)))
        self.process = _Process(self._companion)
        self.pid = self.process.pid
        return self.connection_info


class _Process:
    """A companion with those methods of :class:`subprocess.Popen` that a provisioner calls."""

    stdin = stdout = stderr = None

    def __init__(self, companion: Companion) -> None:
        self._process, self.pid = companion.process, companion.process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:  # else its number may be another's by now
            os.kill(self.pid, number)
