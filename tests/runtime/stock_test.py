"""Tests for the stock runtime: it computes, and neither hangs nor leaks."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from tff_codist import errors
from tff_codist import runtime
from tff_codist.runtime import stock

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_DEADLINE_SECONDS = 30.0
_STEPS = 600_000  # About two seconds of a loop in the worker.


@tff.federated_computation(tff.FederatedType(np.int32, tff.CLIENTS))
def _sum(values):
  return tff.federated_sum(values)


@tff.tensorflow.computation(np.int32)
def _count_slowly(start):
  return tf.while_loop(
    lambda i, _: i < _STEPS,
    lambda i, total: (i + 1, total + 1),
    loop_vars=(0, start),
  )[1]


@tff.tensorflow.computation(np.int32)
def _fail_if_negative(value):
  with tf.control_dependencies([tf.debugging.assert_non_negative(value)]):
    return tf.identity(value)


def _is_running(pid):
  try:
    state = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2]
  except (FileNotFoundError, ProcessLookupError):
    return False
  return state.split()[0] != 'Z'


def _wait_until(condition):
  deadline = time.monotonic() + _DEADLINE_SECONDS
  while not condition():
    assert time.monotonic() < deadline, 'out of time'
    time.sleep(0.01)


def _kill(pid):
  os.kill(pid, signal.SIGKILL)
  _wait_until(lambda: not _is_running(pid))


def _installed(context):
  return tff.framework.get_context_stack().install(context)


@pytest.fixture(scope='module')
def shared_context():
  with stock.StockContext() as context:
    yield context


@pytest.fixture
def context(shared_context):
  with _installed(shared_context):
    yield shared_context


@contextlib.contextmanager
def _killing(context, times):
  """Kills the worker in mid-call, up to `times` times; yields the killed."""
  done = threading.Event()
  killed = []

  def kill():
    while len(killed) < times:
      pid = context.worker_pid
      if pid not in killed:
        # Long enough for the call to have begun, short against its length.
        if done.wait(0.5):
          return
        _kill(pid)
        killed.append(pid)
      if done.wait(0.01):
        return

  thread = threading.Thread(target=kill)
  thread.start()
  try:
    yield killed
  finally:
    done.set()
    thread.join()


def _write_fake_worker(folder, body, options=' -IS'):
  path = folder / 'worker'
  path.write_text(f'#!{sys.executable}{options}\n' + textwrap.dedent(body))
  path.chmod(0o755)
  return str(path)


def test_sum_over_clients_reuses_one_worker(context):
  assert _sum([1, 2, 3]) == 6
  pid = context.worker_pid
  assert _sum([4, 5]) == 9
  assert context.worker_pid == pid


def test_worker_killed_between_calls_is_started_again(context, caplog):
  pid = context.worker_pid
  _kill(pid)
  assert _sum([1, 2, 3]) == 6
  assert context.worker_pid != pid
  assert [r.levelname for r in caplog.records] == ['WARNING']
  assert 'starting it again' in caplog.text


def test_worker_killed_in_mid_call_gives_the_right_result(context):
  with _killing(context, times=1) as killed:
    assert _count_slowly(5) == _STEPS + 5
  assert len(killed) == 1
  assert context.worker_pid not in killed


def test_worker_killed_twice_in_mid_call_is_an_error(context):
  with (
    _killing(context, times=2) as killed,
    pytest.raises(errors.WorkerError, match=r'started again.*signal 9.*memory'),
  ):
    _count_slowly(5)
  assert len(killed) == 2
  assert _sum([1, 2, 3]) == 6


def test_threads_share_a_worker_that_dies(context):
  results = []

  def run(start):
    with _installed(context):
      results.append(_count_slowly(start))

  threads = [threading.Thread(target=run, args=[i]) for i in range(2)]
  with _killing(context, times=1) as killed:
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  assert len(killed) == 1
  assert sorted(results) == [_STEPS, _STEPS + 1]


def test_error_of_a_computation_is_raised_without_restart(context):
  pid = context.worker_pid
  with pytest.raises(grpc.RpcError) as error:
    _fail_if_negative(-1)
  assert 'Condition x >= 0' in error.value.details()
  assert _fail_if_negative(1) == 1
  assert context.worker_pid == pid


def test_error_that_tff_would_retry_for_ever_is_raised(tmp_path):
  path = _write_fake_worker(
    tmp_path,
    """
    import concurrent.futures, sys
    import grpc

    class Refusal(grpc.GenericRpcHandler):
      def service(self, _):
        return grpc.unary_unary_rpc_method_handler(
            lambda _, call: call.abort(
                grpc.StatusCode.FAILED_PRECONDITION, 'no such executor'))

    server = grpc.server(concurrent.futures.ThreadPoolExecutor())
    server.add_generic_rpc_handlers([Refusal()])
    server.add_insecure_port('[::]:' + sys.argv[1].partition('=')[2])
    server.start()
    server.wait_for_termination()
    """,
    options='',
  )
  with (
    stock.StockContext(worker_path=path) as context,
    _installed(context),
    pytest.raises(grpc.RpcError, match='no such executor'),
  ):
    _sum([1, 2])


def test_worker_does_not_grow_with_the_numbers_of_clients_it_has_seen(context):
  def count_threads():
    return len(os.listdir(f'/proc/{context.worker_pid}/task'))

  for num_clients in range(1, 16):
    assert _sum([1] * num_clients) == num_clients
  before = count_threads()
  for num_clients in range(16, 31):
    assert _sum([1] * num_clients) == num_clients
  assert count_threads() < before + 20  # 120 with TFF's own factory.


def test_worker_that_ends_at_start_is_quoted(tmp_path):
  path = _write_fake_worker(
    tmp_path,
    """
      import sys
      sys.exit('no such instruction')
      """,
  )
  with pytest.raises(
    errors.WorkerError, match=r"exit status 1.*'no such instruction'"
  ):
    stock.StockContext(worker_path=path)


def test_missing_worker_is_an_error(tmp_path):
  with pytest.raises(errors.WorkerError, match='No such file'):
    stock.StockContext(worker_path=str(tmp_path / 'absent'))


def test_worker_that_never_answers_is_ended_and_quoted(tmp_path):
  path = _write_fake_worker(
    tmp_path,
    f"""
      import os, pathlib, time
      print('I am', os.getpid(), flush=True)
      pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))
      time.sleep(600)
      """,
  )
  with pytest.raises(errors.WorkerError, match=r'within 0.5 s.*I am'):
    stock.StockContext(worker_path=path, startup_timeout_seconds=0.5)
  assert not _is_running(int((tmp_path / 'pid').read_text()))


def test_taken_port_is_tried_again_a_few_times(tmp_path):
  starts = tmp_path / 'starts'
  path = _write_fake_worker(
    tmp_path,
    f"""
      import sys
      print('x', file=open({str(starts)!r}, 'a'))
      sys.exit('Address already in use')
      """,
  )
  with pytest.raises(errors.WorkerError, match='Address already in use'):
    stock.StockContext(worker_path=path)
  assert starts.read_text().split() == ['x', 'x', 'x']


def test_worker_that_dies_at_each_call_is_quoted(tmp_path):
  # It accepts the connection that finds it ready, and dies at the next one.
  path = _write_fake_worker(
    tmp_path,
    """
      import socket, sys
      server = socket.socket(socket.AF_INET6)
      server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
      server.bind(('::', int(sys.argv[1].partition('=')[2])))
      server.listen()
      server.accept()
      server.accept()
      sys.exit('out of memory')
      """,
  )
  with (
    stock.StockContext(worker_path=path) as context,
    _installed(context),
    pytest.raises(errors.WorkerError, match=r"started again.*'out of memory'"),
  ):
    _sum([1, 2])


def test_closed_context_has_no_worker_and_says_so():
  with stock.StockContext() as context, _installed(context):
    pid = context.worker_pid
    context.close()
    context.close()
    assert not _is_running(pid)
    with pytest.raises(errors.WorkerError, match='install the runtime again'):
      _sum([1])


def test_fork_neither_uses_nor_ends_the_worker(context):
  fork_pid = os.fork()
  if fork_pid == 0:
    try:
      context.close()
      _sum([1])
    except errors.WorkerError:
      os._exit(7)
    finally:
      os._exit(1)
  assert os.waitstatus_to_exitcode(os.waitpid(fork_pid, 0)[1]) == 7
  assert _sum([1, 2]) == 3


def test_install_again_gives_the_running_context():
  context = runtime.install('stock')
  assert runtime.install('stock') is context
  assert tff.framework.get_context_stack().current is context
  with pytest.raises(errors.ConfigError, match='close the running context'):
    runtime.install('stock', max_concurrent_computation_calls=1)


def test_install_refuses_an_unknown_name():
  with pytest.raises(errors.UnknownNameError, match="use 'stock'"):
    runtime.install('stok')


_CHILD = """
import os, signal, sys, time
import numpy as np
import tensorflow_federated as tff
from tff_codist import runtime

@tff.federated_computation(tff.FederatedType(np.int32, tff.CLIENTS))
def total(values):
  return tff.federated_sum(values)

def hold_pipes_in_a_fork():
  # All but this program's own output: the fork keeps the guard's pipe open.
  if os.fork() == 0:
    for fd in (0, 1, 2):
      os.close(fd)
    time.sleep(600)
    os._exit(0)

context = runtime.install('stock')
assert total([1, 2]) == 3
pid = context.worker_pid
print(pid, flush=True)
way = sys.argv[1]
if way == 'interrupt':
  try:
    os.killpg(0, signal.SIGINT)  # As the terminal does on Ctrl-C.
    time.sleep(60)
  except KeyboardInterrupt:
    assert total([1, 2]) == 3 and context.worker_pid == pid
elif way == 'exception':
  raise ValueError('on purpose')
elif way == 'sys.exit':
  hold_pipes_in_a_fork()
  context.close()
  sys.exit(5)
elif way == 'SIGTERM':
  os.kill(os.getpid(), signal.SIGTERM)
elif way == 'SIGKILL':
  hold_pipes_in_a_fork()
  os.kill(os.getpid(), signal.SIGKILL)
"""

_EXIT_CODES = {
  'normal end': 0,
  'interrupt': 0,
  'exception': 1,
  'sys.exit': 5,
  'SIGTERM': -signal.SIGTERM,
  'SIGKILL': -signal.SIGKILL,
}


@pytest.fixture(scope='module')
def children():
  """One program for each way to end, all at once: importing TFF is slow."""
  children = {
    way: subprocess.Popen(
      [sys.executable, '-c', _CHILD, way],
      cwd=_ROOT,
      env={**os.environ, 'PYTHONPATH': str(_ROOT)},
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      start_new_session=True,
      text=True,
    )
    for way in _EXIT_CODES
  }
  yield children
  for child in children.values():
    with contextlib.suppress(ProcessLookupError):
      os.killpg(child.pid, signal.SIGKILL)  # Their forks too.
    child.wait()


@pytest.mark.parametrize('way', _EXIT_CODES)
def test_no_worker_is_left_after(way, children):
  # Also shows that the program's pipes close with it.
  output, log = children[way].communicate(timeout=120)
  assert children[way].returncode == _EXIT_CODES[way], log
  pid = int(output)
  _wait_until(lambda: not _is_running(pid))
