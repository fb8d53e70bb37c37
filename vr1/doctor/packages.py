"""Installed versions against those that vr1 is meant to work with."""

import platform
import sys
from importlib import metadata

from packaging.requirements import Requirement

from vr1.doctor.observation import Observation


def observe_packages(distribution: str = "vr1") -> list[Observation]:
    """Python and every package that a distribution requires.

    Args:
        distribution: name of the installed distribution whose requirements count.

    Example:
        >>> observe_packages("no such distribution")[1].state
        'fault'
    """
    found = [Observation(what="Python", told=f"{platform.python_version()}, {sys.executable}")]
    try:
        asked = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        mend = "run `pip install -e . -c constraints.txt` in its folder"
        return [*found, Observation(what=distribution, told="not installed", state="fault", mend=mend)]
    found.append(Observation(what=distribution, told=metadata.version(distribution)))
    return found + [observe_requirement(line) for line in asked if "extra ==" not in line]


def observe_requirement(line: str) -> Observation:
    """One requirement as packages write it.

    Example:
        >>> observe_requirement("packaging>=9999").told.split(" (")[1]
        'asked: >=9999)'
    """
    requirement = Requirement(line)
    mend = f"run `pip install '{requirement.name}{requirement.specifier}'`"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Observation(what=requirement.name, told="not installed", state="fault", mend=mend)
    if not requirement.specifier.contains(version, prereleases=True):
        told = f"{version} (asked: {requirement.specifier})"
        return Observation(what=requirement.name, told=told, state="fault", mend=mend)
    return Observation(what=requirement.name, told=version)
