"""Licences of what the wheel depends on, and of the data behind the heads beside it: looked at, and found to do."""

from __future__ import annotations

import json
import re
import zipfile
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from onetrunk.nn.trunk_source import ARCHIVES
from tests.fixtures.wheel import ROOT
from tests.integration.packaging.test_extras import closure

SHIPPED = "builder,server,cpu,signing,bench"
"""The extras of a user. Tools of developers are used here and passed on to nobody."""

PERMISSIVE = "may be used and passed on as long as its notice stays with it"
ALLOWED = {
    "0BSD": PERMISSIVE,
    "Apache-2.0": PERMISSIVE,
    "Apache-2.0 WITH LLVM-exception": PERMISSIVE,
    "BSD-2-Clause": PERMISSIVE,
    "BSD-3-Clause": PERMISSIVE,
    "BSL-1.0": PERMISSIVE,
    "CNRI-Python": PERMISSIVE,
    "ISC": PERMISSIVE,
    "MIT": PERMISSIVE,
    "MIT-0": PERMISSIVE,
    "MIT-CMU": PERMISSIVE,
    "PSF-2.0": PERMISSIVE,
    "ZPL-2.1": PERMISSIVE,
    "MPL-2.0": "asks for the source of changed files of its own only, and nothing here changes one",
}
# How packages from before SPDX expressions name them.
SPELLINGS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",  # two clauses or three: the difference is not to use the name for advertising
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}

RESEARCH = "for research; nobody has granted more"
NON_COMMERCIAL = "not for commercial use"
FREE = "for any use"
SHARED_ALIKE = "for any use; who passes on the texts keeps their licence"
DATA = {
    "cola": RESEARCH,
    "intent": FREE,
    "mnli": SHARED_ALIKE,
    "mrpc": NON_COMMERCIAL,
    "qnli": SHARED_ALIKE,
    "qqp": NON_COMMERCIAL,
    "rte": RESEARCH,
    "slots": FREE,
    "sst2": RESEARCH,
    "stsb": SHARED_ALIKE,
}
"""Head -> what the licence in its head.json means for who uses it."""


def licence(package: Distribution) -> str:
    """The licence that a package declares: as an SPDX expression, by a classifier, or in words."""
    metadata = package.metadata
    if expression := metadata.get("License-Expression"):
        return expression
    classifiers = [one.rpartition(" :: ")[2] for one in metadata.get_all("Classifier", []) if "License ::" in one]
    named = [one for one in classifiers if one != "OSI Approved"] or [(metadata.get("License") or "").strip()]
    return " AND ".join(SPELLINGS.get(one, one) for one in named)


def allowed(expression: str) -> bool:
    """Whether an expression allows what we do: one side of an OR, and all parts of an AND."""
    if "(" in expression:  # rare, and then every licence that it names must do
        return all(one.strip() in ALLOWED for one in re.split(r"\(|\)| AND | OR ", expression) if one.strip())
    return any(all(one in ALLOWED for one in way.split(" AND ")) for way in expression.split(" OR "))


def test_expressions_are_judged() -> None:
    assert allowed("GPL-3.0-only OR MIT")
    assert not allowed("GPL-3.0-only AND MIT")
    assert not allowed("MIT AND (Apache-2.0 OR GPL-3.0-only)")
    assert not allowed("")
    assert not allowed("Proprietary")


def test_what_the_wheel_depends_on_has_a_licence_that_allows_it() -> None:
    packages = {package.metadata["Name"]: licence(package) for package in closure(SHIPPED)}
    assert len(packages) > 50
    refused = {name: found for name, found in packages.items() if not allowed(found)}
    assert refused == {}, "read these licences; then add them to ALLOWED with the reason, or do without the packages"


def test_the_trunks_that_are_fetched_by_name_have_a_licence_that_allows_it() -> None:
    assert {archive.name: archive.licence for archive in ARCHIVES.values()} == {"all-mpnet-base-v2": "Apache-2.0"}
    assert all(allowed(archive.licence) for archive in ARCHIVES.values())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"{archive.name} ({archive.licence})" in readme for archive in ARCHIVES.values())


def test_the_data_behind_every_head_has_been_looked_at() -> None:
    heads = {path.parent.name: json.loads(path.read_text()) for path in (ROOT / "heads").glob("*/head.json")}
    assert heads.keys() == DATA.keys(), "say here what the licence of a new head's data means"
    readme = (ROOT / "README.md").read_text()
    for name, head in heads.items():
        noted = head["licence"]
        assert noted, name
        assert noted in (ROOT / "heads" / name / "README.md").read_text(), "whoever reads the card has to see it"
        if DATA[name] == NON_COMMERCIAL:
            assert "non-commercial" in noted
        if DATA[name] == FREE:
            assert "CC0" in noted
    limbs = [json.loads(path.read_text()) for path in (ROOT / "limbs").glob("*/limb.json")]
    assert limbs
    for limb in limbs:
        card = (ROOT / "limbs" / limb["name"] / "README.md").read_text()
        assert all(task["licence"] in card for task in limb["tasks"].values()), limb["name"]
    if NON_COMMERCIAL in DATA.values():
        assert "non-commercial research only" in " ".join(readme.split())


@pytest.mark.slow
def test_no_head_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if "safetensors" in name or "head.json" in name]
