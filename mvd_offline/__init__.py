"""mvd-offline: precomputed-target masked video distillation.

Importing this package costs nothing: it loads no torch. The Python surface is in `mvd_offline.models`
(teachers, students, classifiers) and `mvd_offline.shards` (stores).
"""

__version__ = "0.1.0"
