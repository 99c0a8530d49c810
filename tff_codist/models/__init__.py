"""Logits models as pure functions of weights."""

from tff_codist.models.language import lstm
from tff_codist.models.language import transformer
from tff_codist.models.model import Model
from tff_codist.models.model import Weights
from tff_codist.models.model import all_finite
from tff_codist.models.model import fresh_optimizer_state
from tff_codist.models.vision import cnn
from tff_codist.models.vision import mlp
from tff_codist.models.vision import resnet
from tff_codist.models.vision import resnet18

__all__ = [
  'Model',
  'Weights',
  'all_finite',
  'cnn',
  'fresh_optimizer_state',
  'lstm',
  'mlp',
  'resnet',
  'resnet18',
  'transformer',
]
