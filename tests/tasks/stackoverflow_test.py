"""Stack Overflow: tokens as TFF's, vocabulary, domains, presets, bad input.

Most run on a small database of TFF's form. Those on real sentences need
TFF_CODIST_DATA_DIR.
"""

import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

# Not among TFF's public names.
from tensorflow_federated.python.simulation.baselines.stackoverflow import (
  word_prediction_preprocessing,
)

import tasks  # noqa: F401 - registers the tasks.
from tasks import stackoverflow
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import experiment as experiment_lib
from tff_codist import models
from tff_codist import task

_FILE_NAME = 'stackoverflow.sqlite'
_REAL_DIR = os.environ.get('TFF_CODIST_DATA_DIR', '')
_real_data = pytest.mark.skipif(
  not os.path.exists(os.path.join(_REAL_DIR, _FILE_NAME)),
  reason=f'TFF_CODIST_DATA_DIR names no directory with {_FILE_NAME}',
)

_WORDS = ['the', '.', 'is', "don't", 'a']
_PAD, _OOV, _BOS, _EOS = 0, 6, 7, 8
_LENGTH = 4
# {split: {client id: [(type, sentence)]}}; L is 4.
_CLIENTS = {
  'train': {
    '1': [
      ('question', 'the'),
      ('answer', "is a don't ."),
      ('answer', "the unknown is a don't ."),
    ],
    '2': [('answer', 'a b c')],
  },
  'heldout': {'10': [('question', 'the .')]},
  'test': {'3': [('question', '.'), ('question', 'is')]},
}


@pytest.fixture(scope='module', name='written_dir')
def _written_dir(tmp_path_factory):
  """A directory with a database of four users, written by TFF."""
  path = tmp_path_factory.mktemp('data') / _FILE_NAME
  posts = {c: p for split in _CLIENTS.values() for c, p in split.items()}
  tff.simulation.datasets.save_to_sql_client_data(
    list(posts),
    lambda client_id: tf.data.Dataset.from_tensor_slices(
      dict(zip(('type', 'tokens'), map(list, zip(*posts[client_id]))))
    ),
    str(path),
    split_names_by_client_id={
      client_id: split for split, ids in _CLIENTS.items() for client_id in ids
    },
  )
  return path.parent


@pytest.fixture(name='data_dir')
def _data_dir(written_dir, tmp_path):
  """A directory with that database and counts of five words."""
  (tmp_path / _FILE_NAME).symlink_to(written_dir / _FILE_NAME)
  _counts_file(tmp_path).parent.mkdir()
  _counts_file(tmp_path).write_text(
    ''.join(f'{word} {9 - i}\n' for i, word in enumerate(_WORDS))
  )
  return tmp_path


def _counts_file(data_dir):
  return data_dir / 'datasets' / 'stackoverflow.word_count'


def _load(data_dir, **text):
  text = {'vocab_size': len(_WORDS), 'sequence_length': _LENGTH, **text}
  config = config_lib.Config(
    task=config_lib.TaskConfig(name='stackoverflow', data_dir=str(data_dir)),
    text=config_lib.TextConfig(**text),
  )
  return task.tasks['stackoverflow'](config)


def _tff_tokens(sentences, words, length):
  """Returns the inputs and labels that TFF's baseline task makes."""
  preprocess = word_prediction_preprocessing.create_preprocess_fn(
    tff.simulation.baselines.ClientSpec(
      num_epochs=1, batch_size=len(sentences), shuffle_buffer_size=1
    ),
    words,
    sequence_length=length,
  )
  dataset = tf.data.Dataset.from_tensor_slices({'tokens': sentences})
  return next(preprocess(dataset).as_numpy_iterator())


def test_special_tokens_are_those_of_tff():
  tokenizer = stackoverflow.Tokenizer([b'a', b'b', b'c'], _LENGTH)
  special = word_prediction_preprocessing.get_special_tokens(3)
  assert special.padding == stackoverflow.PADDING
  assert [tokenizer.oov] == special.out_of_vocab
  assert tokenizer.bos == special.beginning_of_sentence
  assert tokenizer.eos == special.end_of_sentence
  assert tokenizer.num_tokens == 3 + special.get_number_of_special_tokens()


def test_tokens_by_hand(data_dir):
  examples = _load(data_dir).train.load('1')
  assert list(examples) == ['x', 'y', 'domain']
  assert all(values.dtype == np.int32 for values in examples.values())
  # Shorter than L, of L words, longer.
  assert examples['x'].tolist() == [
    [_BOS, 1, _EOS, _PAD],
    [_BOS, 3, 5, 4],
    [_BOS, 1, _OOV, 3],
  ]
  assert examples['y'].tolist() == [
    [1, _EOS, _PAD, _PAD],
    [3, 5, 4, 2],
    [1, _OOV, 3, 5],
  ]
  assert examples['domain'].tolist() == [0, 1, 1]


@pytest.mark.parametrize('length', [2, 3, 4, 20])
def test_tokens_are_those_of_tff(length):
  sentences = [
    '',
    'the',
    'the is',
    'the is a',
    "the is a don't",
    "unknown the <URL> a don't . .",
    'a  b',  # An empty word.
    'The',  # Not lower case.
  ]
  tokenizer = stackoverflow.Tokenizer(map(str.encode, _WORDS), length)
  tokens = tokenizer(map(str.encode, sentences))
  x, y = _tff_tokens(sentences, _WORDS, length)
  np.testing.assert_array_equal(tokens[:, :-1], x)
  np.testing.assert_array_equal(tokens[:, 1:], y)


def test_task_has_splits_domains_and_metrics_of_the_data_set(data_dir):
  loaded = _load(data_dir)
  assert loaded.train.client_ids == ('1', '2')
  assert loaded.held_out.client_ids == ('10',)
  assert loaded.test.client_ids == ('3',)
  assert loaded.num_classes == 9
  assert loaded.pad_id == _PAD
  assert loaded.domains == ('questions', 'answers')
  assert loaded.uncounted_labels == {
    'accuracy_without_oov': (_OOV,),
    'accuracy_without_oov_or_eos': (_OOV, _EOS),
  }


def test_text_fields_are_read(data_dir):
  examples = _load(
    data_dir, vocab_size=2, sequence_length=3, max_sentences=2
  ).train.load('1')
  # 'is', 'a' and "don't" are no longer in the vocabulary: OOV is 3, bos is 4.
  assert examples['x'].tolist() == [[4, 1, 5], [4, 3, 3]]


def test_preprocess_leaves_tokens_as_they_are():
  x = tf.constant([[_BOS, 1, 2]])
  for seed in (None, tf.constant([1, 2])):
    np.testing.assert_array_equal(stackoverflow.preprocess(x, seed), x)


def test_models_take_the_tokens_and_have_the_published_sizes(data_dir):
  loaded = _load(data_dir)
  assert set(loaded.models) == {'small', 'medium', 'large', 'transformer'}
  model = models.Model('small', loaded.models['small'])
  assert model.input_shape == (_LENGTH,)
  assert model.num_classes == loaded.num_classes
  # TFF's network has 4,050,748 weights for 10,004 tokens, 193 for each.
  large = models.Model('large', loaded.models['large'])
  assert large.num_parameters == 4_050_748 - (10_004 - 9) * (96 + 97)


@pytest.mark.parametrize(
  ('sentence', 'expected'),
  [
    ('The is A.', [_BOS, 1, 3, 5]),
    ("Don't ... a", [_BOS, 4, 2, 2]),
    ('  a\t \n a ', [_BOS, 5, 5, _EOS]),
    ('ad-hoc <URL>', [_BOS, _OOV, _OOV, _EOS]),
    ('see http://a.b/c?d=e.f!', [_BOS, _OOV, _OOV, _EOS]),
    ('th\u00e9e &#46;', [_BOS, 1, 2, _EOS]),
  ],
)
def test_foreign_sentences_become_tokens(data_dir, sentence, expected):
  foreign = _load(data_dir).foreign
  assert foreign.feature == 'text'
  x = foreign.convert([sentence])
  assert x.dtype == np.int32
  assert x.tolist() == [expected]


def test_noise_is_uniform_words_after_the_beginning(data_dir):
  foreign = _load(data_dir).foreign
  x = foreign.noise(np.random.default_rng(0), 2000)
  assert x.dtype == np.int32
  assert x.shape == (2000, _LENGTH)
  assert (x[:, 0] == _BOS).all()
  # 6,000 words out of 5: each count is within six standard deviations of
  # 1,200 but for 1e-8. The seed is fixed.
  counts = np.bincount(x[:, 1:].ravel(), minlength=_OOV)
  assert counts[0] == 0 and len(counts) == _OOV
  assert np.abs(counts[1:] - 1200).max() < 6 * np.sqrt(6000 * 0.2 * 0.8)


def test_vocabulary_larger_than_the_counts_names_the_largest(data_dir):
  with pytest.raises(errors.ConfigError) as caught:
    _load(data_dir, vocab_size=6)
  assert '--text.vocab_size to at most 5' in str(caught.value)


@pytest.mark.parametrize(
  'line', [b'the', b'the 3', b'x y 3', b'x three', b'', b'x -3', b'\xff 1.5']
)
def test_damaged_counts_are_a_data_error_with_the_line(data_dir, line):
  lines = _counts_file(data_dir).read_bytes().splitlines()
  lines[2] = line
  _counts_file(data_dir).write_bytes(b'\n'.join(lines))
  with pytest.raises(errors.DataError, match='line 3'):
    _load(data_dir)
  # Lines behind the vocabulary are not read.
  assert _load(data_dir, vocab_size=2).num_classes == 6


def test_missing_counts_are_downloaded_by_tff(data_dir, monkeypatch):
  counts = _counts_file(data_dir).read_text()
  _counts_file(data_dir).unlink()
  absent_until_then = []

  def load_word_counts(cache_dir):
    folder = os.path.join(cache_dir, 'datasets')
    os.mkdir(folder)
    with open(os.path.join(folder, _counts_file(data_dir).name), 'w') as file:
      file.write(counts)
    absent_until_then.append(not _counts_file(data_dir).exists())

  monkeypatch.setattr(
    tff.simulation.datasets.stackoverflow, 'load_word_counts', load_word_counts
  )
  assert _load(data_dir).num_classes == 9
  assert absent_until_then == [True]
  assert os.listdir(data_dir / 'datasets') == [_counts_file(data_dir).name]


def test_missing_counts_without_network_say_what_to_do(data_dir, monkeypatch):
  _counts_file(data_dir).unlink()

  def load_word_counts(cache_dir):
    raise OSError('Name or service not known')

  monkeypatch.setattr(
    tff.simulation.datasets.stackoverflow, 'load_word_counts', load_word_counts
  )
  with pytest.raises(errors.DataNotFoundError) as caught:
    _load(data_dir)
  for part in (
    str(_counts_file(data_dir)),
    'Name or service not known',
    'https://',
    'stackoverflow.word_count.tar.bz2',
  ):
    assert part in str(caught.value)
  assert not os.listdir(data_dir / 'datasets')


def test_unknown_type_of_post_is_a_data_error(tmp_path):
  path = tmp_path / _FILE_NAME
  tff.simulation.datasets.save_to_sql_client_data(
    ['1', '2', '3'],
    lambda _: tf.data.Dataset.from_tensor_slices(
      {'type': ['comment'], 'tokens': ['a']}
    ),
    str(path),
    split_names_by_client_id={'1': 'train', '2': 'heldout', '3': 'test'},
  )
  _counts_file(tmp_path).parent.mkdir()
  _counts_file(tmp_path).write_text('a 1\n')
  loaded = _load(tmp_path, vocab_size=1)
  with pytest.raises(errors.DataError, match=r"comment.*client '1'"):
    loaded.train.load('1')


@pytest.mark.parametrize('name', ['stackoverflow', 'stackoverflow_domains'])
@pytest.mark.parametrize('quick', [True, False])
def test_presets_are_consistent(name, quick):
  config = task.presets[name](quick)
  experiment_lib.check_names(config)
  assert config.task.name == 'stackoverflow'
  assert set(config.pools.domains) <= {'all', *stackoverflow.DOMAINS}


@_real_data
def test_real_users_and_their_types_of_post():
  loaded = _load(_REAL_DIR, vocab_size=10_000, sequence_length=20)
  assert len(loaded.train.client_ids) == 1375
  assert len(loaded.test.client_ids) == 372
  assert len(loaded.held_out.client_ids) == 163
  assert loaded.num_classes == 10_004
  counts = np.zeros(2, int)
  for client_id in loaded.test.client_ids:
    domain = loaded.test.load(client_id)['domain']
    counts += np.bincount(domain, minlength=2)
  assert counts.min() > 1000


@_real_data
def test_real_tokens_are_those_of_tff():
  loaded = _load(
    _REAL_DIR, vocab_size=2000, sequence_length=20, max_sentences=30
  )
  with open(_counts_file(pathlib.Path(_REAL_DIR))) as file:
    words = [next(file).split()[0] for _ in range(2000)]
  reference = tff.simulation.datasets.stackoverflow.load_data(_REAL_DIR)
  for data, expected in zip(
    (loaded.train, loaded.held_out, loaded.test), reference
  ):
    assert data.client_ids == tuple(expected.client_ids)
    client_id = data.client_ids[len(data.client_ids) // 2]
    sentences = [
      example['tokens']
      for example in expected.create_tf_dataset_for_client(client_id)
      .take(30)
      .as_numpy_iterator()
    ]
    x, y = _tff_tokens(sentences, words, 20)
    examples = data.load(client_id)
    np.testing.assert_array_equal(examples['x'], x)
    np.testing.assert_array_equal(examples['y'], y)
    # The set's own sentences have the form that foreign ones are given.
    decoded = [sentence.decode() for sentence in sentences]
    np.testing.assert_array_equal(loaded.foreign.convert(decoded), x)
