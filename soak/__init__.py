"""Long trials with real disks and real processes: bits that flip, disks that fail, disks that are full."""
