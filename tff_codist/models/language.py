"""Next-word models: from tokens to the logits of each next token.

Inputs are int32 tokens `[batch, length]`, 0 being padding after the end of a
sentence; outputs are logits `[batch, length, num_tokens]`, those at position t
a function of the tokens up to t. Padding is a token like others to the models:
no position before it sees it, and the losses leave it out. All functions build
a new Keras model at each call; wrap them in `Model`.
"""

import tensorflow as tf


def lstm(
  num_tokens: int, length: int, *, embedding: int, units: int
) -> tf.keras.Model:
  """Builds a recurrent network with one LSTM.

  With `embedding=96, units=670` it is the network of Reddi et al. (arXiv
  2003.00295) and of TFF's Stack Overflow task, 4,050,748 weights for 10,004
  tokens. TFF's has a mask that holds the state at padding, which changes only
  logits that count nowhere; it is left out, as it costs a tenth of the time.

  Args:
    num_tokens: Number of tokens, special ones among them; also the length of
      the logits.
    length: Tokens of a sentence.
    embedding: Size of a token's embedding, and of the projection of the LSTM's
      output before the logits.
    units: Units of the LSTM.
  """
  layers = tf.keras.layers
  return tf.keras.Sequential(
    [
      layers.InputLayer((length,), dtype=tf.int32),
      layers.Embedding(num_tokens, embedding),
      layers.LSTM(units, return_sequences=True),
      layers.Dense(embedding),
      layers.Dense(num_tokens),
    ]
  )


def transformer(
  num_tokens: int, length: int, *, width: int, heads: int, depth: int
) -> tf.keras.Model:
  """Builds a causal transformer with LayerNorm before each sublayer.

  A decoder (Vaswani et al., arXiv 1706.03762) in the order of Xiong et al.
  (arXiv 2002.04745), which trains without a warm-up of the learning rate.
  Positions are learned; there is no dropout.

  Args:
    num_tokens: Number of tokens, special ones among them; also the length of
      the logits.
    length: Tokens of a sentence.
    width: Size of the embeddings, a multiple of `heads`.
    heads: Attention heads.
    depth: Blocks of attention and a dense layer of `4 * width` units.
  """
  layers = tf.keras.layers
  tokens = layers.Input((length,), dtype=tf.int32)
  x = layers.Embedding(num_tokens, width)(tokens)
  x = PositionEmbedding()(x)
  for _ in range(depth):
    y = layers.LayerNormalization()(x)
    y = layers.MultiHeadAttention(heads, width // heads)(
      y, y, use_causal_mask=True
    )
    x = layers.Add()([x, y])
    y = layers.LayerNormalization()(x)
    y = layers.Dense(4 * width, activation='gelu')(y)
    y = layers.Dense(width)(y)
    x = layers.Add()([x, y])
  x = layers.LayerNormalization()(x)
  return tf.keras.Model(tokens, layers.Dense(num_tokens)(x))


@tf.keras.saving.register_keras_serializable(package='tff_codist')
class PositionEmbedding(tf.keras.layers.Layer):
  """Adds to each position of `[batch, length, width]` what it learned for it.

  A saved model with it can be loaded where this package is imported.
  """

  def build(self, input_shape):
    self.embeddings = self.add_weight(
      'embeddings', tuple(input_shape[1:]), initializer='uniform'
    )
    super().build(input_shape)

  def call(self, inputs):
    return inputs + self.embeddings
