"""A cluster to work on: connected to, or started for this command alone, and looked at before anything is begun.

Knows: Ray.  Knows nothing of: jobs beyond what they need.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Any

from mobillm_kit import __version__
from mobillm_kit.cluster.order import Errand
from mobillm_kit.common import MIB, usable_cores
from mobillm_kit.errors import KitError, extra, first_line

LOOPBACK = "127.0.0.1"
STORE_BYTES = 256 * MIB
"""Of a cluster that we start: checkpoints on their way; more than that goes over the disk."""
NODE_ANSWER_S = 120.0
"""Longest wait for a node's answer to what it has installed; it starts a process for that."""


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray's module while this process is a driver: of the cluster of this machine, of one behind ``ray://``, or of one
    that is started here and ends with it.

    A cluster that we start takes a token that nobody else has, listens on loopback, its dashboard too, and reports
    nothing to Ray's makers.
    """
    local = address == "ray:local"
    if local:  # read when Ray is imported
        os.environ |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        os.environ.pop("RAY_ADDRESS", None)
    with extra("cluster", "Running on Ray needs {}", brings=("ray",)):
        import ray
    how: dict[str, Any] = {"address": "auto" if address == "ray" else address, "log_to_driver": False}
    if local:
        how |= {"address": "local", "num_cpus": usable_cores(), "object_store_memory": STORE_BYTES}
        how |= {"dashboard_host": LOOPBACK, "_node_ip_address": LOOPBACK}
    try:
        ray.init(**how)
    except Exception as error:  # Ray's own kinds, gRPC's, and plain ones
        raise KitError(*_unreachable(address, error)) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _unreachable(address: str, error: Exception) -> tuple[str, str]:
    words = first_line(error)
    if "token" in str(error).lower():
        remedy = "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN) as its head has them."
        return f"--on {address}: the cluster does not take this machine's token ({words}).", remedy
    remedy = "Start one with `ray start --head`, name one with --on ray://HOST:10001, or take --on ray:local."
    return f"--on {address}: no cluster to work on ({words}).", remedy


def here(ray: Any) -> Any:
    """On the node that the driver is connected to."""
    return on_node(ray, ray.get_runtime_context().get_node_id(), soft=True)


def on_node(ray: Any, node_id: str, *, soft: bool) -> Any:
    """A strategy of scheduling: that node, and if ``soft`` another one where it is gone."""
    return ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, soft=soft)


def _nodes(ray: Any) -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def check_nodes(ray: Any) -> None:
    """Refuse a node without the kit, or with another version of it or of torch: its records would not be equal."""
    probe = ray.remote(num_cpus=0, max_retries=0)(_probe())
    wanted = {"mobillm_kit": __version__, "torch": metadata.version("torch")}
    asked = [
        (node, probe.options(scheduling_strategy=on_node(ray, node["NodeID"], soft=False)).remote())
        for node in _nodes(ray)
    ]
    for node, answer in asked:
        name = f"Node {node['NodeManagerAddress']} ({node['NodeID'][:8]})"
        try:
            found = ray.get(answer, timeout=NODE_ANSWER_S)
        except ray.exceptions.RayError as error:
            problem = f"{name}: does not say what it has installed ({first_line(error)})."
            raise KitError(problem, "See `ray status`; take the node out, or start it again.") from error
        for what, version in wanted.items():
            if found[what] != version:
                has = f"has {what} {found[what]}" if found[what] else f"has no {what}"
                raise KitError(f"{name}: {has}.", f"Install {what} {version} there, as here, and start the node again.")


def _probe() -> Callable[[], dict[str, str]]:
    """A function that travels as a whole: a node without the kit could not import one of ours."""

    def _versions() -> dict[str, str]:
        from importlib import import_module, metadata

        found = {"mobillm_kit": "", "torch": ""}
        try:
            found["mobillm_kit"] = import_module("mobillm_kit").__version__
            found["torch"] = metadata.version("torch")
        except (ImportError, AttributeError):
            pass
        return found

    return _versions


def check_room(ray: Any, errands: Sequence[Errand]) -> None:
    """Refuse a job for which no node is large enough; it would wait for ever."""
    sizes = [node["Resources"] for node in _nodes(ray)]
    for errand in errands:
        need = errand.need
        wanted = {"CPU": need.cpus, "memory": need.memory_bytes, "GPU": need.gpus}
        if not any(all(size.get(what, 0) >= much for what, much in wanted.items()) for size in sizes):
            has = ", ".join(f"{size.get('CPU', 0):g} and {size.get('memory', 0) / MIB:,.0f} MiB" for size in sizes)
            problem = f"{errand.job.label}: needs {need} by prediction; no node is so large (cores and memory: {has})."
            raise KitError(problem, "Add a larger node, take fewer --threads, or a smaller batch or --max-length.")
