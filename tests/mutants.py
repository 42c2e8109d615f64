"""Mutation testing of what meets other people's files and servers: python tests/mutants.py [MODULE | MUTANT]...

mutmut 3 makes the mutants: copies of each function, one with every small change, and a trampoline that calls the one
that is asked for. They are run here and not by ``mutmut run``, which takes a module's name from its path (the
repository's root is the package) and starts pytest anew for each of 3,000 mutants. Here pytest starts once, notes which
test calls which function and how long it takes, and then forks for every mutant: the child runs the tests of that
function, quickest first, until one fails.

A module is ``models/manifest``, a mutant a pattern, ``*resolve*``.
``MINUTES`` in the environment ends it sooner, with a random sample; ``CHILDREN`` is how many run at a time.
Prints for each module how many mutants the tests notice, and fails below 85 %. What survives is written, as a diff, to
``build/mutants/survivors.diff``, which test noticed the others, and why, to ``noticed.log`` beside it. Functions that
have a decorator (`functools.cache`, properties) mutmut leaves alone.
"""

from __future__ import annotations

import difflib
import gc
import inspect
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol
from _pytest.warnings import catch_warnings_for_item
from mutmut.mutation import trampoline
from mutmut.mutation.file_mutation import mutate_file_contents

ROOT = Path(__file__).resolve().parent.parent
LAB = Path(os.environ.get("LAB", ROOT / "build" / "mutants"))
PACKAGE = LAB / "resnext_hub"
TEMPORARY = LAB / "tmp"
FLOOR = 85.0  # percent
CHILDREN = int(os.environ.get("CHILDREN", "2"))
MINUTES = float(os.environ.get("MINUTES", "inf"))
CONTROLS = 3  # as many mutants' tests are run without them first: a test that fails anyway would count as noticing
SLOWEST = 3.0  # seconds of a processor: a test that takes longer is left out

UTILITIES = tuple(f"processing_utils/{path.stem}" for path in sorted((ROOT / "processing_utils").glob("*.py")))
#: The tests that are held against each module's mutants.
TESTS = {
    **dict.fromkeys(
        ("models/checkpoints", "models/pickles"),
        (
            "test_checkpoints.py",
            "test_download.py",
            "test_entrypoints.py",
            "test_hostile_checkpoints.py",
            "test_pickles.py",
        ),
    ),
    **dict.fromkeys(
        ("models/download", "models/transport"),
        ("test_download.py", "test_download_faults.py", "test_download_steps.py"),
    ),
    "exchange": ("test_download_faults.py", "test_exchange.py", "test_http_exchange.py", "test_uris.py"),
    "models/manifest": ("test_manifest.py", "test_manifest_reading.py"),
    **dict.fromkeys(
        UTILITIES,
        (
            "test_hostile_images.py",
            "test_http_exchange.py",
            "test_image_sources.py",
            "test_images.py",
            "test_predictions.py",
            "test_preprocessing.py",
            "test_resampling.py",
            "test_ssrf.py",
            "test_uris.py",
        ),
    ),
}
# Tests that start another process see no mutant, and large images take long.
LEFT_OUT = (
    "need_no_torch or tables_are_current or schema or built_network or help_says or size2 or size3 or any_size or "
    "any_bytes or large_photo or shrunk_pictures or photos or processes or killed or payloads or no_code or "
    "two_formats or bomb or out_of_bounds or out_of_order or at_random or cut_short_anywhere or postscript"
)


def lay_out(modules: list[str]) -> dict[str, list[str]]:
    """Copy the tree to the laboratory, mutants in the place of the modules; their names, by module."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    shutil.rmtree(LAB, ignore_errors=True)
    for name in listed:
        if (ROOT / name).is_file():
            (PACKAGE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, PACKAGE / name)
    names: dict[str, list[str]] = {}
    for module in modules:
        path = PACKAGE / f"{module}.py"
        mutated = mutate_file_contents(f"{module}.py", path.read_text(encoding="utf-8"))
        path.write_text(mutated.code, encoding="utf-8")
        prefix = f"resnext_hub.{module.replace('/', '.').removesuffix('.__init__')}"
        names[module] = [f"{prefix}.{name}" for name in mutated.mutant_names]
    return names


def forget() -> None:
    """Empty every `functools.cache`: what the unchanged functions returned hides a mutant."""
    for name, module in list(sys.modules.items()):
        if name.startswith("resnext_hub."):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


def run_one(item: pytest.Item, later: pytest.Item | None) -> list[pytest.TestReport]:
    with catch_warnings_for_item(item.config, item.ihook, "runtest", item):
        return runtestprotocol(item, nextitem=later, log=False)


class Laboratory:
    """A pytest plugin: all tests once, to note what they call, then each mutant in a process of its own."""

    def __init__(self, mutants: list[str]) -> None:
        self.mutants = mutants
        self.outcomes: dict[str, str] = {}
        self.tests_of: dict[str, set[pytest.Item]] = defaultdict(set)
        self.cost: dict[pytest.Item, float] = {}

    def pytest_configure(self) -> None:
        import hypothesis  # pytest wants to be there first

        options: dict[str, Any] = {"database": None, "derandomize": True, "deadline": None, "max_examples": 25}
        options["phases"] = [hypothesis.Phase.generate]  # a mutant need not be shrunk to
        hypothesis.settings.register_profile("mutants", **options)
        hypothesis.settings.load_profile("mutants")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self._note_calls(session)
        items = {item for item in session.items if self.cost[item] < SLOWEST}
        gc.freeze()  # what is collected in a child need not be copied for it
        running: dict[int, tuple[str, float]] = {}
        random.Random(0).shuffle(self.mutants)  # what a time limit leaves is a fair sample
        for mutant in self.mutants[:CONTROLS]:
            clean = self._wait(*self._fork("none", self._held_against(mutant, items)))
            assert clean == "survived", f"the tests of {mutant} fail without it: {clean}"
        end_of_time = time.monotonic() + 60 * MINUTES
        for mutant in [*self.mutants, None]:
            while running and (mutant is None or len(running) >= CHILDREN):
                for pid in list(running):
                    name, deadline = running[pid]
                    if (end := self._poll(pid, deadline)) is not None:
                        self.outcomes[name] = end
                        del running[pid]
                        self._report()
                time.sleep(0.005)
            if mutant is None or time.monotonic() > end_of_time:
                continue
            tests = self._held_against(mutant, items)
            if not tests:
                self.outcomes[mutant] = "untested"
                continue
            pid, deadline = self._fork(mutant, tests)
            running[pid] = mutant, deadline
        return True

    def _note_calls(self, session: pytest.Session) -> None:
        called: set[str] = set()
        vars(trampoline)["record_trampoline_hit"] = lambda name, caller=None: called.add(name)
        trampoline.set_mutant_under_test("stats")
        for item, later in zip(session.items, [*session.items[1:], None], strict=True):
            forget()  # or only the first test would be seen to call what is cached
            called.clear()
            start = time.process_time()
            reports = run_one(item, later)
            self.cost[item] = time.process_time() - start
            if failed := [report for report in reports if report.failed]:
                print(f"fails without a mutant: {item.nodeid}\n{failed[0].longrepr}", file=sys.__stderr__)
                self.cost[item] = float("inf")
            for function in called:
                self.tests_of[function].add(item)

    def _held_against(self, mutant: str, items: set[pytest.Item]) -> list[pytest.Item]:
        return sorted(self.tests_of[mutant.partition("__mutmut_")[0]] & items, key=self.cost.__getitem__)

    def _fork(self, mutant: str, items: list[pytest.Item]) -> tuple[int, float]:
        """The process in which the mutant is run, and when it has run for too long."""
        cost = sum(self.cost[item] for item in items)
        if pid := os.fork():
            return pid, time.monotonic() + 120 + 100 * cost
        status = 3
        gc.disable()
        try:
            folder = TEMPORARY / str(os.getpid())
            folder.mkdir()
            vars(items[0].config._tmp_path_factory)["_basetemp"] = folder  # what a child leaves, `_poll` removes
            seconds = int(10 + 10 * cost)
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
            trampoline.set_mutant_under_test(mutant)
            forget()
            status = 0
            for item, later in zip(items, [*items[1:], None], strict=True):
                if failed := [r for r in run_one(item, later) if r.failed]:
                    with open(LAB / "noticed.log", "a", encoding="utf-8") as file:  # why, and by which test
                        file.write(f"# {mutant}: {item.nodeid}\n{failed[0].longrepr}\n\n")
                    status = 1
                    break
        finally:
            os._exit(status)

    def _poll(self, pid: int, deadline: float) -> str | None:
        done, status = os.waitpid(pid, os.WNOHANG)
        if not done:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            return None
        shutil.rmtree(TEMPORARY / str(pid), ignore_errors=True)
        if os.WIFSIGNALED(status):
            return "timeout" if os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU) else "killed"
        return "killed" if os.WEXITSTATUS(status) else "survived"

    def _wait(self, pid: int, deadline: float) -> str:
        while (end := self._poll(pid, deadline)) is None:
            time.sleep(0.01)
        return end

    def _report(self) -> None:
        (LAB / "outcomes.json").write_text(json.dumps(self.outcomes))


def difference(mutant: str) -> str:
    """What the mutant changes, as a unified diff without its header."""
    module, _, name = mutant.rpartition(".")
    owner: Any = sys.modules[module]
    if "ǁ" in name:
        owner = getattr(owner, name.split("ǁ")[1])
    original = f"{name.partition('__mutmut_')[0]}__mutmut_orig"
    old, new = (inspect.getsource(getattr(owner, n)).replace(n, "f").splitlines() for n in (original, name))
    return "\n".join([f"# {mutant}", *list(difflib.unified_diff(old, new, lineterm="", n=1))[2:]])


def main(arguments: list[str]) -> int:
    patterns = [argument for argument in arguments if argument not in TESTS] or ["*"]
    chosen = [argument for argument in arguments if argument in TESTS]
    modules = [module for module in chosen or TESTS if (ROOT / f"{module}.py").is_file()]
    os.chdir(ROOT)
    names = lay_out(modules)
    os.chdir(PACKAGE)
    sys.path.insert(0, str(LAB))
    wanted = [name for module in modules for name in names[module] if any(fnmatch(name, p) for p in patterns)]
    laboratory = Laboratory(wanted)
    tests = [test for module in modules for test in TESTS[module] if (ROOT / "tests" / test).is_file()]
    arguments = ["-q", "--tb=native", "--assert=plain", "-p", "no:cacheprovider", "-k", f"not ({LEFT_OUT})"]
    # Of its own: another pytest's clean-up may take the usual one away, and then every test fails.
    arguments += ["-o", "tmp_path_retention_policy=none", f"--basetemp={TEMPORARY}"]
    if status := pytest.main([*arguments, *(f"tests/{test}" for test in dict.fromkeys(tests))], plugins=[laboratory]):
        return int(status)
    survivors = [name for name, end in laboratory.outcomes.items() if end in ("survived", "untested")]
    (LAB / "survivors.diff").write_text("\n\n".join(map(difference, survivors)), encoding="utf-8")
    outcomes = laboratory.outcomes
    counts = {module: Counter(outcomes.get(name, "untried") for name in names[module]) for module in modules}
    if set(UTILITIES) <= set(modules):
        counts["processing_utils"] = sum((counts[module] for module in UTILITIES), Counter())
    failed = False
    for module, count in counts.items():
        share = 100 * (count["killed"] + count["timeout"]) / max(1, count.total() - count["untried"])
        print(f"{module:32} {count.total():5} mutants {share:5.1f} % noticed  {dict(count)}")
        failed |= share < FLOOR and module not in UTILITIES
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
