"""The mount agrees with a real directory about random operations, over remounts, kills and server restarts."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from mountfs import control
from mountfs.config import MountConfig
from tests.conftest import MakeMount
from tests.fuzz.stops import Stops
from tests.harness import Mount, Node
from tests.mount.conftest import Folder
from tests.mount.inprocess import InProcess
from tests.mount.model import Disagreement, Model, OnDisk, differences, read_tree

NUMBERS = itertools.count()


def profile(soak: int, examples: int, steps: int) -> settings:
    """Few and always the same examples; with --soak many and new ones, and failures are shrunk."""
    phases = [Phase.generate, Phase.shrink] if soak > 1 else [Phase.generate]
    return settings(
        max_examples=examples * soak,
        stateful_step_count=steps,
        derandomize=soak == 1,
        database=None,
        deadline=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )


def check(machine: Callable[[], Model], settings: settings) -> None:
    """Run the model. Raises Disagreement, also when the same steps agree the next time."""
    Model.failures.clear()
    try:
        run_state_machine_as_test(machine, settings=settings)  # type: ignore[arg-type]
    except (Flaky, BaseExceptionGroup):
        raise Disagreement("\n\n".join(["not every time:", *Model.failures])) from None


class OnPlain(Model):
    """The steps of the model on two directories, each example in new ones."""

    def __init__(self, folder: Folder, real: Path) -> None:
        super().__init__()
        name = f"example{next(NUMBERS)}"
        self.folder = folder
        self.roots = [folder.path / name, real / name]
        for root in self.roots:
            root.mkdir()
        self.tested, self.real = (OnDisk(os.fsencode(root)) for root in self.roots)

    def teardown(self) -> None:
        super().teardown()
        for root in self.roots:
            shutil.rmtree(root)


class OnMount(OnPlain):
    """On a mount and a directory, with the accidents of a mount's life; at the end the server has it all."""

    def __init__(self, folder: Folder, real: Path, second: Mount) -> None:
        super().__init__(folder, real)
        self.second = second
        assert folder.node
        self.stops = Stops(folder.node)

    @precondition(lambda self: bool(self.folder.mount))
    @rule(how=st.sampled_from(["drained", "killed", "with an empty state"]))
    def remount(self, how: str) -> None:
        mount = self.folder.mount
        assert mount
        self.close_all()
        self.steps.append(f"remount, {how}")
        if how == "killed":
            mount.kill()
        else:
            mount.stop()
        if how == "with an empty state":
            shutil.rmtree(mount.state)
        mount.start()

    @precondition(lambda self: bool(self.folder.node))
    @rule()
    def stop_the_server_for_a_moment(self) -> None:
        self.steps.append("stop the server for a moment")
        self.stops.stop()

    @precondition(lambda self: bool(self.folder.node))
    @rule(sig=st.sampled_from([signal.SIGTERM, signal.SIGKILL]))
    def restart_the_server(self, sig: signal.Signals) -> None:
        assert self.folder.node
        self.steps.append(f"restart the server {sig.name}")
        self.stops.go()
        self.folder.node.restart(sig)

    def unsound(self) -> list[str]:
        if not self.folder.mount:
            return []
        found = control.call(self.folder.mount.state / control.NAME, "check", timeout=60)
        return [*found["faults"], *found["damaged"], *found["lost"]]

    def teardown(self) -> None:
        self.stops.go()
        self.close_all()
        self.folder.sync()
        self.second.start()
        seen = read_tree(OnDisk(os.fsencode(self.second.path / self.roots[0].name)))
        self.second.stop()
        shutil.rmtree(self.second.state)
        found = differences(seen, read_tree(self.real))
        if found:
            self.differ("\n".join(["a second mount with an empty state sees:", *found]))
        super().teardown()


class OnVfs(Model):
    """On the file system without FUSE, in this process."""

    def __init__(self, config: MountConfig, node: Node, real: Path) -> None:
        super().__init__()
        self.state = config.state
        self.stops = Stops(node)
        self.root = real / f"example{next(NUMBERS)}"
        self.root.mkdir()
        self.real = OnDisk(os.fsencode(self.root))
        self.tested = self.vfs = InProcess(config, os.fsencode(self.root.name))
        self.vfs.start()

    @rule(how=st.sampled_from(["drained", "not drained", "with an empty state"]))
    def restart(self, how: str) -> None:
        self.close_all()
        self.steps.append(f"restart, {how}")
        self.vfs.stop(drain=how != "not drained")
        if how == "with an empty state":
            shutil.rmtree(self.state)
            self.state.mkdir()
        self.vfs.start()

    @rule()
    def stop_the_server_for_a_moment(self) -> None:
        self.steps.append("stop the server for a moment")
        self.stops.stop()

    def unsound(self) -> list[str]:
        found = self.vfs.check()
        return [*found.faults, *found.damaged, *found.lost]

    def teardown(self) -> None:
        self.stops.go()
        super().teardown()
        self.vfs.stop()
        shutil.rmtree(self.root)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes of owner need root")


@needs_root
def test_random_operations_agree_with_a_real_directory(
    folder: Folder, tmp_path: Path, make_module_mount: MakeMount, soak: int
) -> None:
    def machine() -> Model:
        return OnMount(folder, tmp_path, second) if second else OnPlain(folder, tmp_path)

    second = make_module_mount(folder.node, "programs", start=False) if folder.node else None
    check(machine, profile(soak, examples=5, steps=40))


@needs_root
def test_random_operations_without_fuse_agree_with_a_real_directory(
    module_node: Node, tmp_path: Path, soak: int
) -> None:
    config = MountConfig(
        url=module_node.url,
        bucket=module_node.create_bucket("vfs"),
        mountpoint=tmp_path,
        token=module_node.token,
        state=tmp_path / "state",
        settle=0.05,
    )
    config.state.mkdir()
    check(lambda: OnVfs(config, module_node, tmp_path), profile(soak, examples=20, steps=50))
