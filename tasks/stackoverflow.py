"""Task 'stackoverflow': next-word prediction on TFF's Stack Overflow.

A client is a user, an example a sentence of a question or an answer, which are
the two domains. Tokens, labels and metrics are those of TFF's baseline task
(`tff.simulation.baselines.stackoverflow`), hence those of Reddi et al. (arXiv
2003.00295): 0 is padding, 1 to V the commonest words, V + 1 any other word,
V + 2 the beginning and V + 3 the end of a sentence.

Any other data in the same form will do: an SQLite file with the splits `train`,
`heldout` and `test`, and a file of word counts.
"""

import functools
import html
import itertools
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Optional

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_codist import clients
from tff_codist import config as config_lib
from tff_codist import errors
from tff_codist import models
from tff_codist import sql_clients
from tff_codist import task

DOMAINS = ('questions', 'answers')
PADDING = 0

_DATA_SET = sql_clients.DataSet(
  title="TFF's Stack Overflow",
  file_name='stackoverflow.sqlite',
  sizes='9.1 GB compressed, several times as much unpacked',
  splits=('train', 'heldout', 'test'),
  load_data=tff.simulation.datasets.stackoverflow.load_data,
)
# Where TFF unpacks the word counts, from the directory of the data sets.
_WORD_COUNTS = pathlib.Path('datasets', 'stackoverflow.word_count')
_WORD_COUNTS_URL = (
  'https://storage.googleapis.com/tff-datasets-public/'
  'stackoverflow.word_count.tar.bz2'
)

_FEATURES = {
  'tokens': tf.io.FixedLenFeature((), tf.string),
  'type': tf.io.FixedLenFeature((), tf.string),
}
# Types of posts, in the order of the domains.
_TYPES = (b'question', b'answer')

_URL = re.compile(r'(?:https?://|www\.)\S+|<url>')
# A URL, a word, or any other character by itself.
_PIECES = re.compile(r"<URL>|[a-z0-9'-]+|[^a-z0-9'\s-]")


class Tokenizer:
  """From sentences to tokens.

  Attributes:
    length: L, the words after which a sentence is cut.
    num_tokens: Number of different tokens, V + 4.
    oov: The token of words that are not in the vocabulary.
    bos: The token at the beginning of a sentence.
    eos: The token at its end, if the sentence ends before it is cut.
  """

  def __init__(self, words: Iterable[bytes], length: int):
    """Numbers the words.

    Args:
      words: The vocabulary, different words.
      length: L.
    """
    self._ids = {word: i for i, word in enumerate(words, start=1)}
    self.length = length
    self.oov, self.bos, self.eos = (len(self._ids) + i for i in (1, 2, 3))
    self.num_tokens = len(self._ids) + 4

  def __call__(self, sentences: Iterable[bytes]) -> np.ndarray:
    """Returns int32 tokens `[sentences, L + 1]`: inputs and, after one, labels.

    Args:
      sentences: Words, separated by one space each.
    """
    rows = []
    for sentence in sentences:
      words = sentence.split(b' ', self.length)[: self.length]
      row = [self.bos, *(self._ids.get(word, self.oov) for word in words)]
      if len(words) < self.length:
        row.append(self.eos)
      rows.append(row + [PADDING] * (self.length + 1 - len(row)))
    return np.array(rows, np.int32).reshape(-1, self.length + 1)


class Sentences:
  """Sentences of other data sets, and noise; a `task.ForeignInputs`."""

  feature = 'text'

  def __init__(self, tokenizer: Tokenizer):
    self._tokenizer = tokenizer

  def convert(self, items: list) -> np.ndarray:
    """Returns tokens `[examples, L]`.

    The text is brought into the form of the data set: lower case, ASCII, HTML
    entities resolved, URLs replaced, punctuation apart from apostrophes and
    hyphens separated. A sentence of which nothing is left is left out.

    Args:
      items: Sentences, `str`.
    """
    sentences = filter(None, map(_normalize, items))
    return self._tokenizer(sentences)[:, :-1]

  def noise(self, rng: np.random.Generator, num_examples: int) -> np.ndarray:
    """Returns sentences of independent uniform words of the vocabulary."""
    tokenizer = self._tokenizer
    x = rng.integers(
      1, tokenizer.oov, size=(num_examples, tokenizer.length), dtype=np.int32
    )
    x[:, 0] = tokenizer.bos
    return x


@task.tasks.register('stackoverflow', 'task.data_dir', 'text')
def load_task(config: config_lib.Config) -> task.Task:
  """Opens the data set; downloads it at the first use.

  Args:
    config: Says where the data is, and how sentences become tokens. The seed is
      not read: the clients are users.

  Returns:
    The task. Stored inputs are int32 tokens `[L]`, labels the next ones, `[L]`.

  Raises:
    ConfigError: If fewer words than `text.vocab_size` have a count.
    DataNotFoundError: If a file is missing and cannot be downloaded.
    DataError: If a file is damaged.
  """
  database = sql_clients.open_database(_DATA_SET, config.task.data_dir)
  data_dir = sql_clients.find_data_dir(config.task.data_dir)
  tokenizer = Tokenizer(
    _load_words(data_dir / _WORD_COUNTS, config.text.vocab_size),
    config.text.sequence_length,
  )

  def to_examples(
    client_id: str, features: Mapping[str, np.ndarray]
  ) -> clients.Examples:
    tokens = tokenizer(features['tokens'])
    return clients.Examples(
      x=tokens[:, :-1],
      y=tokens[:, 1:],
      domain=_domains(client_id, features['type']),
    )

  train, held_out, test = (
    database.clients(
      split, _FEATURES, to_examples, limit=config.text.max_sentences
    )
    for split in ('train', 'heldout', 'test')
  )
  return task.Task(
    name='stackoverflow',
    num_classes=tokenizer.num_tokens,
    train=train,
    test=test,
    preprocess=preprocess,
    models=_models(tokenizer.num_tokens, config.text.sequence_length),
    pad_id=PADDING,
    eos_id=tokenizer.eos,
    uncounted_labels={
      'accuracy_without_oov': (tokenizer.oov,),
      'accuracy_without_oov_or_eos': (tokenizer.oov, tokenizer.eos),
    },
    domains=DOMAINS,
    held_out=held_out,
    foreign=Sentences(tokenizer),
  )


def preprocess(x: tf.Tensor, seed: Optional[tf.Tensor] = None) -> tf.Tensor:
  """Returns the tokens as they are, int32 `[batch, L]`; a `task.Preprocess`."""
  del seed
  return tf.cast(x, tf.int32)


@task.presets.register('stackoverflow')
def preset(quick: bool) -> config_lib.Config:
  """MERGED CODIST on next words, the large LSTM on a tenth of the users.

  Command: bin/train.py --preset stackoverflow --run_dir runs/stackoverflow
  Measured on 1,375 users of Stack Exchange sites: small 10.6 %, large 10.6 % in
  round 200, without unknown words and ends of sentences; one seed, 26 minutes
  on two cores shared with four other runs.

  Client SGD and FedAdam have the rates that Reddi et al. tuned (arXiv
  2003.00295). On all 342,477 users they take a vocabulary of 10,000, the
  default, up to 1,000 sentences of a user and cohorts of 50; less is taken here
  so that a run ends in minutes. The server's sentences are those of users whom
  the data set holds out. Distillation waits until the models have something to
  teach. See tasks/cifar100.py on `rescale` and (at `cifar100_domains`) on
  epsilon, tasks/digits.py on `match_norm`.

  Args:
    quick: Two rounds of two clients, few words and short sentences,
      distillation from the first round, in place of 200 rounds.
  """
  return _preset(quick, clients_fraction=(1.0, 0.1))


@task.presets.register('stackoverflow_domains')
def preset_domains(quick: bool) -> config_lib.Config:
  """MERGED CODIST between answers, the small LSTM, and questions, the large.

  Command: bin/train.py --preset stackoverflow_domains --run_dir runs/domains
  Measured on 1,375 users of Stack Exchange sites: outside its domain the small
  model has a loss of 5.31 nats, the large one 5.23, mean over rounds 160 to 200
  (FedAvg 5.35 and 5.27); one seed, 27 minutes on two cores shared with four
  other runs.

  All users can run both models, but a pool trains on one type of post only:
  what it knows of the other comes from the other pool. Otherwise as `preset`.

  Args:
    quick: As in `preset`.
  """
  return _preset(
    quick, clients_fraction=(1.0,), domains=('answers', 'questions')
  )


def _preset(quick: bool, **pools: tuple) -> config_lib.Config:
  return config_lib.Config(
    task=config_lib.TaskConfig(name='stackoverflow'),
    text=config_lib.TextConfig(
      vocab_size=500 if quick else 4000,
      sequence_length=8 if quick else 20,
      max_sentences=32,
    ),
    unlabelled=config_lib.UnlabelledConfig(
      sources=('held_out',), max_examples=64 if quick else 5000
    ),
    pools=config_lib.PoolsConfig(
      names=('small', 'large'),
      models=('small', 'large'),
      cohort_size=(2,) if quick else (10,),
      **pools,
    ),
    algorithm=config_lib.AlgorithmConfig(name='merged_codist'),
    client=config_lib.ClientConfig(
      learning_rate=10**-0.5, epochs=1, batch_size=16
    ),
    server=config_lib.ServerConfig(
      optimizer='fedadam', learning_rate=0.01, beta2=0.99, epsilon=1e-5
    ),
    distillation=config_lib.DistillationConfig(batch_size=64, epsilon=1e-2),
    periodic=config_lib.PeriodicConfig(
      period=1 if quick else 50, steps=5 if quick else 50, learning_rate=1e-3
    ),
    merged=config_lib.MergedConfig(
      distillation_weight=(0.1, 0.1),
      steps=1,
      learning_rate=1e-4,
      warmup_rounds=0 if quick else 100,
      match_norm=True,
      rescale=True,
    ),
    program=config_lib.ProgramConfig(
      rounds=2 if quick else 200,
      rounds_per_evaluation=2 if quick else 20,
      rounds_per_checkpoint=1 if quick else 10,
      evaluation_clients=4 if quick else 100,
    ),
  )


def _models(
  num_tokens: int, length: int
) -> Mapping[str, Callable[[], tf.keras.Model]]:
  """Returns the models; the numbers of weights are those for 10,000 words."""
  lstm = functools.partial(models.lstm, num_tokens, length)
  return {
    # 1,635,668 weights.
    'small': functools.partial(lstm, embedding=64, units=256),
    # 2,764,468 weights.
    'medium': functools.partial(lstm, embedding=96, units=400),
    # 4,050,748 weights, TFF's.
    'large': functools.partial(lstm, embedding=96, units=670),
    # 3,366,932 weights.
    'transformer': functools.partial(
      models.transformer, num_tokens, length, width=128, heads=4, depth=4
    ),
  }


def _normalize(sentence: str) -> bytes:
  """Returns the words of a text, separated by spaces."""
  text = html.unescape(sentence).lower().encode('ascii', 'ignore').decode()
  return ' '.join(_PIECES.findall(_URL.sub('<URL>', text))).encode()


def _domains(client_id: str, types: np.ndarray) -> np.ndarray:
  """Returns the domain of each example from its type of post."""
  try:
    return np.array([_TYPES.index(kind) for kind in types], np.int32)
  except ValueError as error:
    raise errors.DataError(
      f'types of posts {sorted(set(types))} of client {client_id!r}',
      expected="'question' and 'answer'",
      fix=f'replace {_DATA_SET.file_name} with a complete one',
    ) from error


def _load_words(path: pathlib.Path, vocab_size: int) -> list[bytes]:
  """Returns the commonest words; downloads their counts at the first use.

  Args:
    path: A file with a word and its count a line, the commonest first.
    vocab_size: Words to return.

  Raises:
    ConfigError: If there are fewer words.
    DataNotFoundError: If the file is missing and cannot be downloaded.
    DataError: If a line is damaged.
  """
  if not path.exists():
    _download_word_counts(path)
  words = {}
  with path.open('rb') as file:
    for line_num, line in enumerate(itertools.islice(file, vocab_size), 1):
      word, *count = line.split() or [b'']
      if len(count) != 1 or not count[0].isdigit() or word in words:
        raise errors.DataError(
          f'{line!r} in {path}, line {line_num}',
          expected='a word and its count, each word once',
          fix='delete the file; the next run downloads it again',
        )
      words[word] = line_num
  if len(words) < vocab_size:
    raise errors.ConfigError(
      f'text.vocab_size = {vocab_size} and {len(words)} words in {path}',
      expected='at most as many words in the vocabulary as have a count',
      fix=f'set --text.vocab_size to at most {len(words)}',
    )
  return list(words)


def _download_word_counts(path: pathlib.Path) -> None:
  """Lets TFF download the counts; they appear in their place when complete."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
      tff.simulation.datasets.stackoverflow.load_word_counts(cache_dir=folder)
      pathlib.Path(folder, _WORD_COUNTS).replace(path)
  except Exception as error:
    # Whatever went wrong at the server, in between or on this disk.
    raise errors.DataNotFoundError(
      f'no file {path}, and no way to download it ({error})',
      expected="TFF's counts of the words in that place, 'word count' a line",
      fix=f'download {_WORD_COUNTS_URL} where there is a network, unpack it '
      f'and copy {path.name} to {path.parent}',
    ) from error
