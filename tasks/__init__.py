"""The tasks; importing this package registers them and their presets."""

from tasks import cifar100
from tasks import digits

__all__ = ['cifar100', 'digits']
