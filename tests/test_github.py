"""GitHub's files: the workflow, the templates for issues, CITATION.cff."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import yaml

from .conftest import ROOT

WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())


def test_the_workflow_runs_ci_with_no_more_rights_than_it_needs() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    (job,) = WORKFLOW["jobs"].values()
    assert "permissions" not in job
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_actions_are_pinned_by_their_commit() -> None:
    (job,) = WORKFLOW["jobs"].values()
    actions = [step["uses"] for step in job["steps"] if "uses" in step]
    assert actions
    assert all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", action) for action in actions)


def test_the_citation_names_the_repository_and_the_manifests_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["repository-code"] == project["urls"]["Repository"]
    papers = json.loads((ROOT / "weights_manifest.json").read_text(encoding="utf-8"))["papers"].values()
    cited = {reference["url"]: reference for reference in citation["references"]}
    assert {paper["url"]: paper["title"] for paper in papers} == {url: cited[url]["title"] for url in cited}
    for paper in papers:
        reference = cited[paper["url"]]
        assert f"year={{{reference['year']}}}" in paper["citation"]
        authors = re.search(r"author=\{(.*)\}", paper["citation"])
        assert authors
        assert authors[1].count(" and ") + 1 == len(reference["authors"])
        assert all(author["family-names"] in authors[1] for author in reference["authors"])
