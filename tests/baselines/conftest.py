"""Cohorts for the tests of the baselines."""

import pytest

from tff_codist import clients
from tff_codist.testing import toys


@pytest.fixture
def make_cohort():
  """Makes a cohort of clients whose examples are a function of their ids."""

  def make(*client_ids, num_examples=20):
    return clients.Cohort(
      [
        toys.seeded(toys.make_examples(num_examples, seed=int(client_id)))
        for client_id in client_ids
      ],
      client_ids,
    )

  return make
