"""Backups: a directory, or one file, with the state of every group as of one index each, and a manifest.

    Backup            what a backup holds, and where its files are
    restore(...)      makes the data directories of a NEW cluster from it, offline
    replace_group(...)   gives one group of a stopped cluster the state that an export holds

How they are made, online, stands in multiraft.exporting and multiraft.admin.backup_commands.
"""

from __future__ import annotations

from multiraft.backup.archive import Backup, Cut, load_backup, pack, save_backup, unpack, verify_cut
from multiraft.backup.replacing import Replacement, plan_replacement, replace_group
from multiraft.backup.restoring import NodePlace, restore

__all__ = [
    "Backup",
    "Cut",
    "NodePlace",
    "Replacement",
    "load_backup",
    "pack",
    "plan_replacement",
    "replace_group",
    "restore",
    "save_backup",
    "unpack",
    "verify_cut",
]
