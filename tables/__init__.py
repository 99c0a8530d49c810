"""The tables; importing this package registers them and all that they train."""

import baselines as _baselines
import tasks as _tasks
from tables import codist
from tables import fedopt
from tables import methods
from tables import privacy

del _baselines, _tasks

__all__ = ['codist', 'fedopt', 'methods', 'privacy']
