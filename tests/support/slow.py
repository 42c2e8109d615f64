"""The mark "slow", which `make quick` leaves out: from a list, which `make slow` writes from measured times."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import pytest

LIST = Path(__file__).with_name("slow.txt")
MEAN, LONGEST = 0.2, 1.0  # seconds of processor time, over the parameters of a test
#: Their setting up would count for whichever test comes first: all that use them are slow.
FIXTURES = {"distributions", "exported", "forks", "triton_python"}
STARTED = pytest.StashKey[float]()


def name_of(test: str) -> str:
    """Return a test's id without folders, so that its file may move, and without parameters."""
    path, _, name = test.partition("[")[0].partition("::")
    return f"{Path(path).name}::{name}"


def processor_time() -> float:
    """Return the seconds used by this process and by its children that have ended: no matter what else is running."""
    return sum(os.times()[:4])


class SlowTests:
    """Marks the tests on the list, says how many tests were left out, and writes the list if WRITE_SLOW is set."""

    def __init__(self, config: pytest.Config) -> None:
        self.worker: dict[str, int] | None = getattr(config, "workeroutput", None)
        self.left_out = 0
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        listed = set(LIST.read_text(encoding="utf-8").splitlines())
        for item in items:
            if name_of(item.nodeid) in listed or not FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
                item.add_marker("slow")

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self.left_out += len(items)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        item.stash[STARTED] = processor_time()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        if call.when == "teardown":
            item.user_properties.append(("seconds", processor_time() - item.stash.get(STARTED, processor_time())))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            self.seconds[name_of(report.nodeid)].append(float(str(dict(report.user_properties)["seconds"])))

    def pytest_sessionfinish(self) -> None:
        if self.worker is not None:
            self.worker["left_out"] = self.left_out
        elif "WRITE_SLOW" in os.environ:
            slow = sorted(
                test for test, seconds in self.seconds.items() if fmean(seconds) > MEAN or max(seconds) > LONGEST
            )
            LIST.write_text("".join(f"{test}\n" for test in slow), encoding="utf-8")

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        self.left_out = getattr(node, "workeroutput", {}).get("left_out", 0)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.left_out:
            terminalreporter.write_line(f"Left out: {self.left_out} tests")
