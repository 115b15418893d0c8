"""Attacks on a mesh, each with the one defence that repels it.

An attack is a function of the classes that it meets, and of an empty folder if it takes one; it
gives whether it was repelled, and may be a coroutine function. A defence is a method of one of
those classes. What there is in all, and what the issue asks for, is `mesh_attacks.listed`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinkex.errors import TinkerError

Attack = Callable[..., Any]


@dataclass(frozen=True)
class Defence:
    """One method, or, where `method` is empty, one class."""

    which: str
    """The field of the suite's classes."""
    method: str
    off: Any
    """What stands there when it is off; where `method` is empty, the weak class."""
    attacks: tuple[Attack, ...]
    """Those that get through then, and no other."""

    @property
    def name(self) -> str:
        return f"{self.which}.{self.method}".rstrip(".")

    def removed(self, classes: Any) -> Any:
        """The classes without it."""
        strong = getattr(classes, self.which)
        if not self.method:
            assert issubclass(self.off, strong)
            return replace(classes, **{self.which: self.off})
        assert callable(getattr(strong, self.method)), self.name
        weak = type(f"Weak{strong.__name__}", (strong,), {self.method: self.off})
        return replace(classes, **{self.which: weak})


@dataclass(frozen=True)
class Suite:
    """Attacks that meet the same classes."""

    name: str
    classes: Any
    """A frozen dataclass of classes."""
    defences: tuple[Defence, ...]

    @property
    def attacks(self) -> tuple[Attack, ...]:
        return tuple(dict.fromkeys(one for defence in self.defences for one in defence.attacks))

    def named(self, attack: Attack) -> str:
        return f"{self.name}.{attack.__name__}"

    def near(self, defence: Defence) -> tuple[Attack, ...]:
        """The attacks that meet the class of a defence: the only ones that it can matter to."""
        same = [other for other in self.defences if other.which == defence.which]
        return tuple(dict.fromkeys(one for other in same for one in other.attacks))


def one_each(by_attack: dict[Attack, tuple[str, str, Any]], *more: Defence) -> tuple[Defence, ...]:
    """Defences of which each repels one attack, and those of which that is not so."""
    made = (Defence(*defence, (attack,)) for attack, defence in by_attack.items())
    return (*made, *more)


async def is_repelled(attack: Attack, classes: Any, folder: Path) -> bool:
    """Try an attack, in a folder that is empty."""
    takes_folder = len(inspect.signature(attack).parameters) == 2
    done = attack(folder, classes) if takes_folder else attack(classes)
    if inspect.isawaitable(done):
        done = await done
    assert done is True or done is False, attack
    return done


def refused(errors: type[TinkerError], work: Callable[..., Any], *arguments: Any, **options: Any):
    """Whether something is refused by a typed error."""
    try:
        work(*arguments, **options)
    except errors:
        return True
    return False


def nothing(*_: Any, **__: Any) -> None:
    """What stands where a check was."""
