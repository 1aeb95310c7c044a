"""The loop that every training runs in, and what it keeps on the disk.

Owns iterations, snapshots, alarms, metrics and resuming. Knows nothing of what is trained.
"""
