# What runs besides where the user has a systemd: see `tests`. The last one ends that.
scope
walk
groups_root --skip root_itself
session_root
