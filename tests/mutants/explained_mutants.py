"""Random mutants of the core that nothing can notice, each with its reason.

Rules of this file: a mutant stands here only where the code does the same with it and without it, as far as any user of
the core can tell; where a test could notice, the test is what is missing. Names are those that `random_run.py` prints.
"""

from __future__ import annotations

from typing import Final

EXPLAINED: Final[dict[str, str]] = {}
