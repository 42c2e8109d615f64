"""The identity of a run: what differs is named."""

from __future__ import annotations

from resnext_hub import __version__
from resnext_hub.run_identity import differences, versions


def test_differences_are_named() -> None:
    before = {"source": ("a",), "batch": 16, "versions": {"numpy": "2.1"}, "classes": {}}
    assert differences(before, {**before, "source": ["a"]}) == ""
    now = {"source": ["b" * 300], "batch": 8, "versions": {"numpy": "2.2", "pillow": None}, "top": 5}
    found = differences(before, now).split("; ")
    assert [line.split()[0] for line in found] == ["source", "batch", "versions.numpy", "classes", "top"]
    assert found[1:3] == ["batch 16, now 8", "versions.numpy '2.1', now '2.2'"]
    assert len(found[0]) < 300


def test_versions_are_of_this_package_and_of_those_asked_for() -> None:
    found = versions("numpy", "no-such-package")
    assert found["resnext-hub"] == __version__
    assert found["numpy"]
    assert found["no-such-package"] is None
