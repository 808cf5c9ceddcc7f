"""A real IPython kernel for tests: cells, interrupts, and a front end's hand on a widget."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import jupyter_client
import psutil

START_S = 180.0
"""Kernel, torch and a server process may start slowly on a busy machine; what is claimed is how fast they end."""


class Kernel:
    """A real IPython kernel, and what its cells say."""

    def __init__(self) -> None:
        self.manager = jupyter_client.KernelManager(kernel_name="python3")
        self.manager.start_kernel(extra_arguments=["--IPKernelApp.log_level=ERROR"])
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=START_S)

    def start(self, code: str) -> str:
        # A kernel throws away what arrives while it answers for an error; the cell after an interrupt may be so early.
        return self.client.execute(code, stop_on_error=False)

    def until_said(self, cell: str, word: str) -> str:
        """The rest of the first line printed by a cell that begins with a word."""
        deadline = time.monotonic() + START_S
        said = ""
        while time.monotonic() < deadline:
            message = self.client.get_iopub_msg(timeout=START_S)
            if message["parent_header"].get("msg_id") != cell:
                continue
            content = message["content"]
            said += content.get("text", "")  # a line may come in pieces
            for line in said.splitlines(keepends=True):
                if line.startswith(word) and line.endswith("\n"):
                    return line.removeprefix(word).strip()
            if message["msg_type"] == "error" or content.get("execution_state") == "idle":
                raise AssertionError(f"{word!r} was not said, but: {said}{content.get('evalue', '')}")
        raise AssertionError(f"{word!r} was not said within {START_S} s, but: {said}")

    def until_it_has_a_server(self) -> int:
        """A server process that has begun, and has not said anything yet."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            for child in psutil.Process(self.manager.provisioner.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if "mobillm_kit.cli" in child.cmdline():
                        return child.pid
            time.sleep(0.01)
        raise AssertionError("no server process was started")

    def move(self, widget: str, **state: Any) -> None:
        """What a front end sends when a hand moves a widget."""
        content = {"comm_id": widget, "data": {"method": "update", "state": state}}
        self.client.shell_channel.send(self.client.session.msg("comm_msg", content))

    def told(self, widget: str, name: str) -> Any:
        """The next value of a widget's trait that the kernel tells the front end."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            content = self.client.get_iopub_msg(timeout=START_S)["content"]
            if content.get("comm_id") == widget and name in (state := content["data"].get("state", {})):
                return state[name]
        raise AssertionError(f"{name} was not told")

    def until_done(self, cell: str) -> str:
        """``ok``, or the name of the error that ended a cell."""
        while True:
            reply = self.client.get_shell_msg(timeout=START_S)
            if reply["parent_header"].get("msg_id") == cell:
                return reply["content"].get("ename", reply["content"]["status"])

    def end(self) -> None:
        self.client.stop_channels()
        if self.manager.has_kernel:
            self.manager.shutdown_kernel(now=True)
