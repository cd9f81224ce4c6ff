"""What a mutant is: one rule taken out of the code, and the tests that must notice.

Rules of this file: values, and no files.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change that breaks one rule.

    name   short, unique
    rule   what the change breaks, in words
    file   from the top of the checkout
    old    text that occurs exactly once in `file`: keep it short, so that it outlives other changes
    new    what takes its place; must compile
    tests  node ids, as pytest takes them; each must fail. A parametrized test without its brackets must fail in one
           case at least
    also   further (old, new) in the same file, where one place is not enough
    works  a cluster under this change still serves its callers while nothing goes wrong, so that a test which fails
           has noticed the missing rule, and not that everything is broken. Checked; False where it cannot be so
    """

    name: str
    rule: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    also: tuple[tuple[str, str], ...] = ()
    works: bool = True

    def fits(self, text: str) -> str | None:
        """Return what keeps the change from being made to `text`, the file's; None when it fits."""
        for old, _ in ((self.old, self.new), *self.also):
            found = text.count(old)
            if found != 1:
                return f"its old text occurs {found} times in {self.file}, not once: {old!r}"
        return None

    def changed(self, text: str) -> str:
        """Return `text` with the change made; it must fit."""
        for old, new in ((self.old, self.new), *self.also):
            text = text.replace(old, new)
        return text
