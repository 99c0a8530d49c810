"""The tasks; importing this package registers them and their presets."""

from tasks import cifar100
from tasks import digits
from tasks import emnist
from tasks import fed_md
from tasks import stackoverflow

__all__ = ['cifar100', 'digits', 'emnist', 'fed_md', 'stackoverflow']
