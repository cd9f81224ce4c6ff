"""Every small change that can be made to a file of Python, as edits of its text.

What is changed stands inside functions: comparisons and their boundaries, +-1, `and` and `or`, negations, conditions,
statements that are dropped, values that are returned, and names that are easily taken for each other. Left alone is
what cannot change how the code behaves, or never stays unnoticed: docstrings and other texts, annotations, what an
`__init__` sets, and the functions that only describe.

Rules of this file: an edit is named by its function and by its statement with the change in it, so that the name
outlives changes elsewhere; the same text gives the same edits in the same order.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

DESCRIBING: Final = {"status", "__repr__"}
COMPARISONS: Final[dict[type[ast.cmpop], tuple[str, tuple[str, ...]]]] = {
    ast.Lt: ("<", ("<=", ">=")),
    ast.LtE: ("<=", ("<", ">")),
    ast.Gt: (">", (">=", "<=")),
    ast.GtE: (">=", (">", "<")),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: ("is not", ("is",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: ("not in", ("in",)),
}
ARITHMETIC: Final[dict[type[ast.operator], tuple[str, str]]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "+"),
    ast.FloorDiv: ("//", "*"),
}
NAMES: Final = {
    "FOLLOWER": "PRE_CANDIDATE",
    "PRE_CANDIDATE": "CANDIDATE",
    "CANDIDATE": "PRE_CANDIDATE",
    "LEADER": "FOLLOWER",
    "PROBE": "REPLICATE",
    "REPLICATE": "PROBE",
    "LOST": "PROBE",
    "NOBODY": "1",
    "INDEX_MAX": "0",
    "FOUNDING_INDEX": "0",
    "min": "max",
    "max": "min",
}
ATTRIBUTES: Final = {
    "_messages": "_answers",
    "_answers": "_messages",
    "match": "next",
    "next": "match",
    "first": "last",
    "last": "first",
    "voters": "outgoing",
    "outgoing": "voters",
    "stable": "handed",
    "handed": "stable",
    "inf": "pi",
}
NUMBERS: Final = {"Index", "Term", "int", "float"}
COMPOUND: Final = (ast.If, ast.While, ast.For, ast.With, ast.Try, ast.FunctionDef, ast.ClassDef)


@dataclass(frozen=True, slots=True)
class Edit:
    """One change of the text of one file.

    name        file, function, and the statement with the change marked in it; unique, and without line numbers
    line        where the statement begins
    start, end  what of the file is replaced, in bytes of UTF-8
    new         what takes its place
    """

    name: str
    line: int
    start: int
    end: int
    new: str

    def changed(self, text: str) -> str:
        """Return `text`, the file's, with the change made."""
        raw = text.encode()
        return (raw[: self.start] + self.new.encode() + raw[self.end :]).decode()


def edits_of(file: str, text: str) -> list[Edit]:
    """Return every edit of `text`, in the order of the text. `file` is what the names begin with."""
    found = _Finder(text)
    found.read(ast.parse(text).body, "")
    edits: list[Edit] = []
    seen: dict[str, int] = {}
    for function, line, marked, change in found.edits:
        name = f"{file} {function}: {marked}"
        seen[name] = seen.get(name, 0) + 1
        edits.append(
            Edit(name if seen[name] == 1 else f"{name} #{seen[name]}", line, change.start, change.end, change.new)
        )
    return edits


@dataclass(frozen=True, slots=True)
class Change:
    """What is replaced, by what, and how the name shows it, where that is shorter: (start, end, text)."""

    start: int
    end: int
    new: str
    shown: tuple[int, int, str] | None = None


class _Finder:
    """Walks one file. `edits` gathers (function, line, marked statement, change)."""

    def __init__(self, text: str) -> None:
        self.raw = text.encode()
        self.lines = [0]
        for line in self.raw.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))
        self.edits: list[tuple[str, int, str, Change]] = []

    def read(self, body: list[ast.stmt], inside: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                self.read(node.body, f"{node.name}.")
            elif isinstance(node, ast.FunctionDef) and node.name not in DESCRIBING:
                self.statements(node.body, f"{inside}{node.name}", node)

    def statements(self, body: list[ast.stmt], function: str, of: ast.FunctionDef) -> None:
        for node in body:
            start, end = self.span(node)
            parts: list[ast.AST] = [node]
            if isinstance(node, COMPOUND):
                parts = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
                end = max([self.span(part)[1] for part in parts], default=start)
            changes = [*self.of_statement(node, of), *(change for part in parts for change in self.of_parts(part))]
            for change in sorted(changes, key=lambda one: (one.start, one.end, one.new)):
                self.edits.append((function, node.lineno, self.marked(start, end, change), change))
            for inner in ("body", "orelse", "finalbody"):
                self.statements(getattr(node, inner, []), function, of)

    def marked(self, start: int, end: int, change: Change) -> str:
        """Return the statement, on one line, with `[old => new]` in the place of what is replaced."""
        at, to, new = change.shown or (change.start, change.end, change.new)
        marked = f"{self.text(start, at)}[{self.text(at, to)} => {new}]{self.text(to, max(end, to))}"
        return re.sub(r"\s+", " ", re.sub(r"(?m)  #.*$", "", marked)).strip()

    def span(self, node: ast.AST) -> tuple[int, int]:
        place = node if isinstance(node, ast.stmt | ast.expr) else None
        if place is None or place.end_lineno is None or place.end_col_offset is None:
            return 0, 0
        return (
            self.lines[place.lineno - 1] + place.col_offset,
            self.lines[place.end_lineno - 1] + place.end_col_offset,
        )

    def text(self, start: int, end: int) -> str:
        return self.raw[start:end].decode()

    # -------------------------------------------------------------------------------------------------- statements

    def of_statement(self, node: ast.stmt, of: ast.FunctionDef) -> Iterator[Change]:
        start, end = self.span(node)
        if self.may_be_dropped(node, of):
            yield Change(start, end, "pass")
        if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add | ast.Sub):
            old = "+=" if isinstance(node.op, ast.Add) else "-="
            at = self.raw.index(old.encode(), self.span(node.target)[1])
            yield Change(at, at + 2, "-=" if old == "+=" else "+=")
        elif isinstance(node, ast.If):
            at, to = self.span(node.test)
            yield Change(at, to, f"not ({self.text(at, to)})", (at, to, "not"))
        elif isinstance(node, ast.While):
            yield Change(*self.span(node.test), "False")
        elif isinstance(node, ast.For):
            yield Change(*self.span(node.iter), "()")
        elif isinstance(node, ast.Return) and node.value is not None:
            yield from self.of_return(node.value, ast.unparse(of.returns) if of.returns else "None")

    def may_be_dropped(self, node: ast.stmt, of: ast.FunctionDef) -> bool:
        if isinstance(node, ast.Expr):
            return isinstance(node.value, ast.Call)
        if isinstance(node, ast.Return):
            return node is not of.body[-1]
        if isinstance(node, ast.Assign):
            return of.name != "__init__" and all(
                isinstance(target, ast.Attribute | ast.Subscript)
                or (isinstance(target, ast.Name) and self.known_before(target.id, node, of))
                for target in node.targets
            )
        return isinstance(node, ast.AugAssign | ast.Delete | ast.Raise | ast.Break | ast.Continue)

    def known_before(self, name: str, node: ast.stmt, of: ast.FunctionDef) -> bool:
        """Whether the function binds `name` further up as well: without a value it would only end in a NameError."""
        arguments = {one.arg for one in of.args.args}
        return name in arguments or any(
            isinstance(other, ast.Name)
            and other.id == name
            and isinstance(other.ctx, ast.Store)
            and other.lineno < node.lineno
            for other in ast.walk(of)
        )

    def of_return(self, value: ast.expr, returns: str) -> Iterator[Change]:
        at, to = self.span(value)
        old = self.text(at, to)
        if returns == "bool" and not isinstance(value, ast.Constant):
            yield Change(at, to, f"not ({old})", (at, to, "not"))
        elif returns in NUMBERS and not isinstance(value, ast.Constant):
            yield Change(at, to, f"({old}) + 1", (at, to, "+ 1"))
        elif returns not in {"None", "bool", *NUMBERS} and old != "None":
            yield Change(at, to, "None")

    # ------------------------------------------------------------------------------------------------- expressions

    def of_parts(self, top: ast.AST) -> Iterator[Change]:
        """Yield the changes of every expression in `top`, texts and annotations left alone."""
        yield from self.of_expression(top)
        for child in ast.iter_child_nodes(top):
            if isinstance(child, ast.JoinedStr) or (isinstance(top, ast.AnnAssign) and child is top.annotation):
                continue
            if not isinstance(top, ast.Raise):
                yield from self.of_parts(child)

    def of_expression(self, node: ast.AST) -> Iterator[Change]:
        start, end = self.span(node)
        if isinstance(node, ast.Compare):
            yield from self.of_comparison(node)
        elif isinstance(node, ast.BoolOp):
            yield from self.of_choice(node)
        elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            old, new = ARITHMETIC[type(node.op)]
            yield self.between(node.left, node.right, old, new)
        elif isinstance(node, ast.UnaryOp):
            yield Change(start, end, f"({self.text(*self.span(node.operand))})")
        elif isinstance(node, ast.IfExp):
            at, to = self.span(node.test)
            yield Change(at, to, f"not ({self.text(at, to)})", (at, to, "not"))
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield Change(start, end, str(not node.value))
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            yield Change(start, end, repr(node.value + 1))
            if node.value:
                yield Change(start, end, repr(node.value - 1))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in NAMES:
            yield Change(start, end, NAMES[node.id])
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and node.attr in ATTRIBUTES:
            yield Change(end - len(node.attr), end, ATTRIBUTES[node.attr])

    def of_comparison(self, node: ast.Compare) -> Iterator[Change]:
        sides = [node.left, *node.comparators]
        for op, left, right in zip(node.ops, sides, sides[1:], strict=False):
            old, others = COMPARISONS[type(op)]
            for new in others:
                yield self.between(left, right, old, new)

    def of_choice(self, node: ast.BoolOp) -> Iterator[Change]:
        """Swap each `and` and `or`, and leave each operand away."""
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            yield self.between(left, right, old, new)
        start, end = self.span(node)
        for at in range(len(node.values)):
            kept = [self.operand(value) for value in (*node.values[:at], *node.values[at + 1 :])]
            yield Change(start, end, f" {old} ".join(kept), (*self.span(node.values[at]), "dropped"))

    def operand(self, node: ast.expr) -> str:
        text = self.text(*self.span(node))
        return f"({text})" if isinstance(node, ast.BoolOp | ast.IfExp | ast.Lambda) else text

    def between(self, left: ast.expr, right: ast.expr, old: str, new: str) -> Change:
        """Return the change of the operator `old` between two expressions."""
        at = self.raw.index(old.encode(), self.span(left)[1], self.span(right)[0])
        return Change(at, at + len(old), new)
