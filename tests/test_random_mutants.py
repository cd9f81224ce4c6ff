"""The tool that changes the core at random: its edits compile, change something, and are the same every time."""

from __future__ import annotations

import ast
from typing import Final

from tests.mutants.checkout import ROOT
from tests.mutants.edits import edits_of
from tests.mutants.explained_mutants import EXPLAINED
from tests.mutants.random_run import all_mutants, draw

SAMPLE: Final = '''
class Box:
    """A text."""

    size: int = 1

    def __init__(self) -> None:
        self.first = 0

    def fits(self, one: int) -> bool:
        """Another text."""
        if one < 2 and (self.first or one):
            raise ValueError(f"not {one + 1}")
        self.first = 3
        return one is not None
'''


def test_every_change_of_a_sample_is_found_and_marked() -> None:
    assert {edit.name for edit in edits_of("sample", SAMPLE)} == {
        "sample Box.__init__: self.first = [0 => 1]",
        "sample Box.fits: if [one < 2 and (self.first or one) => not]",
        "sample Box.fits: if one < 2 and ([self.first or one => dropped])",
        "sample Box.fits: if [one < 2 => dropped] and (self.first or one)",
        "sample Box.fits: if one [< => <=] 2 and (self.first or one)",
        "sample Box.fits: if one [< => >=] 2 and (self.first or one)",
        "sample Box.fits: if one < [2 => 1] and (self.first or one)",
        "sample Box.fits: if one < [2 => 3] and (self.first or one)",
        "sample Box.fits: if one < 2 [and => or] (self.first or one)",
        "sample Box.fits: if one < 2 and (self.first or [one => dropped])",
        "sample Box.fits: if one < 2 and ([self.first => dropped] or one)",
        "sample Box.fits: if one < 2 and (self.[first => last] or one)",
        "sample Box.fits: if one < 2 and (self.first [or => and] one)",
        'sample Box.fits: [raise ValueError(f"not {one + 1}") => pass]',
        "sample Box.fits: [self.first = 3 => pass]",
        "sample Box.fits: self.first = [3 => 2]",
        "sample Box.fits: self.first = [3 => 4]",
        "sample Box.fits: return [one is not None => not]",
        "sample Box.fits: return one [is not => is] None",
    }


def test_a_change_replaces_just_what_it_marks() -> None:
    texts = {edit.name: edit.changed(SAMPLE) for edit in edits_of("sample", SAMPLE)}
    changed = texts["sample Box.fits: if one < 2 and ([self.first => dropped] or one)"]
    assert changed == SAMPLE.replace("(self.first or one)", "(one)")


def test_every_drawn_mutant_compiles_and_differs() -> None:
    for one in draw(all_mutants(ROOT), 100, 1):
        text = (ROOT / one.file).read_text(encoding="utf-8")
        assert ast.dump(ast.parse(one.edit.changed(text))) != ast.dump(ast.parse(text)), one.name


def test_names_are_unique_and_a_draw_repeats() -> None:
    known = all_mutants(ROOT)
    names = [one.name for one in known]
    assert len(set(names)) == len(names)
    assert draw(known, 50, 1) == draw(known, 50, 1) != draw(known, 50, 2)


def test_a_draw_hardly_changes_when_the_core_grows() -> None:
    known = all_mutants(ROOT)
    few = {one.name for one in draw(known[:-100], 100, 1)}
    assert len(few & {one.name for one in draw(known, 100, 1)}) > 80


def test_every_explanation_fits_the_code() -> None:
    names = {one.name for one in all_mutants(ROOT)}
    assert not [name for name in EXPLAINED if name not in names]
