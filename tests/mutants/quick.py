"""A pytest plugin for runs against random mutants: the same verdict every time, soon, and within bounded memory.

Generated examples are derived from the test alone and a failing one is not made smaller; a mutant that fills memory
meets a limit. Loaded by `-p tests.mutants.quick --hypothesis-profile=mutants`.
"""

from __future__ import annotations

import resource
from typing import Final

from hypothesis import Phase, settings

_MEMORY_BYTES: Final = 2 << 30

settings.register_profile(
    "mutants", deadline=None, derandomize=True, database=None, phases=(Phase.explicit, Phase.generate)
)
resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
