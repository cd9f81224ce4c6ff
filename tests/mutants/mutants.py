"""All mutants, in the order in which they are reported.

Rules of this file: names are unique.
"""

from __future__ import annotations

from typing import Final

from multiraft.errors import invariant
from tests.mutants.containment_mutants import CONTAINMENT_MUTANTS
from tests.mutants.core_mutants import CORE_MUTANTS
from tests.mutants.core_rules_mutants import CORE_RULES_MUTANTS
from tests.mutants.engine_mutants import ENGINE_MUTANTS
from tests.mutants.files_mutants import FILES_MUTANTS
from tests.mutants.liveness_mutants import LIVENESS_MUTANTS
from tests.mutants.many_mutants import MANY_MUTANTS
from tests.mutants.membership_mutants import MEMBERSHIP_MUTANTS
from tests.mutants.ondisk_mutants import ONDISK_MUTANTS
from tests.mutants.reads_mutants import READS_MUTANTS
from tests.mutants.saving_mutants import SAVING_MUTANTS
from tests.mutants.sessions_mutants import SESSIONS_MUTANTS
from tests.mutants.short_way_mutants import SHORT_WAY_MUTANTS
from tests.mutants.snapshot_mutants import SNAPSHOT_MUTANTS
from tests.mutants.storage_mutants import STORAGE_MUTANTS
from tests.mutants.stores_mutants import STORES_MUTANTS
from tests.mutants.transfer_mutants import TRANSFER_MUTANTS

MUTANTS: Final = (
    *STORAGE_MUTANTS,
    *CORE_MUTANTS,
    *CORE_RULES_MUTANTS,
    *SHORT_WAY_MUTANTS,
    *LIVENESS_MUTANTS,
    *ENGINE_MUTANTS,
    *MEMBERSHIP_MUTANTS,
    *SNAPSHOT_MUTANTS,
    *SAVING_MUTANTS,
    *FILES_MUTANTS,
    *TRANSFER_MUTANTS,
    *ONDISK_MUTANTS,
    *SESSIONS_MUTANTS,
    *MANY_MUTANTS,
    *READS_MUTANTS,
    *STORES_MUTANTS,
    *CONTAINMENT_MUTANTS,
)

invariant(len({one.name for one in MUTANTS}) == len(MUTANTS), "two mutants have the same name")
