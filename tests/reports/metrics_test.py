import pytest

from tff_codist.reports import metrics


@pytest.mark.parametrize(
  ('metric', 'kind', 'has_chance', 'is_better_if_lower', 'text'),
  [
    ('accuracy', 'accuracy', True, False, '25.00%'),
    ('out_of_domain/accuracy', 'accuracy', True, False, '25.00%'),
    ('accuracy_p10', 'accuracy', False, False, '25.00%'),
    ('accuracy_without_oov_or_eos', 'accuracy', False, False, '25.00%'),
    ('questions/perplexity', 'perplexity', False, True, '0.25'),
    ('loss', 'loss', False, True, '0.25'),
  ],
)
def test_a_name_says_what_a_metric_is(
  metric, kind, has_chance, is_better_if_lower, text
):
  assert metrics.kind(metric) == kind
  assert metrics.has_chance(metric) == has_chance
  assert metrics.is_better_if_lower(metric) == is_better_if_lower
  assert metrics.text(metric, 0.25) == text


def test_differences_have_a_sign_and_their_unit():
  assert metrics.number('accuracy', 0.0125, '+') == '+1.25'
  assert metrics.number('loss', -0.0125, '+') == '-0.0125'
  assert metrics.unit('accuracy') == 'percent'
  assert metrics.unit('loss') == ''


def test_a_domain_makes_no_folder():
  assert metrics.file_stem('questions/accuracy') == 'questions_accuracy'
  assert metrics.title('questions/accuracy') == 'questions/accuracy'
