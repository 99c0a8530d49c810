"""Runs one worker and ends it when the program that asked for it is gone.

Started by `stock.py` as `python -I -S _worker_guard.py PARENT_PID COMMAND...`,
so it uses the standard library only. Its standard input is a pipe that the
program holds open: a byte there is the order to stop, and end of file means
that the program is dead, however it died. A fork of the program may keep that
pipe open after the program's death, so the guard also watches whose child it
is. If the guard itself is killed, the kernel kills the worker with it.

Standard output is the report: `pid N` at the start, and once the worker is gone
`exit CODE` followed by the worker's last words.
"""

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys

_LAST_WORDS_BYTES = 8192
_PR_SET_PDEATHSIG = 1  # From <linux/prctl.h>.
_POLL_SECONDS = 0.5
_REAP_POLL_SECONDS = 0.02


def _die_with_guard():
  # Safe between fork and exec: the guard has a single thread.
  ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _read_available(fd):
  """Returns what the pipe holds; b'' is end of file, None is nothing yet."""
  try:
    return os.read(fd, 65536)
  except BlockingIOError:
    return None


def _watch(worker, parent_pid):
  """Waits for the worker's end, or ends it; returns its last words."""
  output = worker.stdout.fileno()
  os.set_blocking(output, False)
  last_words = b''
  poll_seconds = _POLL_SECONDS
  with selectors.DefaultSelector() as selector:
    selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
    selector.register(output, selectors.EVENT_READ)
    while worker.poll() is None and os.getppid() == parent_pid:
      ready = {key.fd for key, _ in selector.select(poll_seconds)}
      if output in ready:
        chunk = _read_available(output)
        if chunk == b'':
          # Nearly always the worker's end, which `poll` is about to see.
          selector.unregister(output)
          poll_seconds = _REAP_POLL_SECONDS
        elif chunk:
          last_words = (last_words + chunk)[-_LAST_WORDS_BYTES:]
      if sys.stdin.fileno() in ready:
        break
  if worker.poll() is None:
    worker.kill()
    worker.wait()
  while chunk := _read_available(output):
    last_words = (last_words + chunk)[-_LAST_WORDS_BYTES:]
  return last_words


def _report(data):
  with contextlib.suppress(BrokenPipeError):  # Nobody may be left to read it.
    os.write(sys.stdout.fileno(), data)


def main(parent_pid, command):
  try:
    worker = subprocess.Popen(
      command,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      preexec_fn=_die_with_guard,
    )
  except OSError as error:
    _report(f'exit 127\n{error}'.encode())
    return
  _report(f'pid {worker.pid}\n'.encode())
  last_words = _watch(worker, parent_pid)
  _report(f'exit {worker.returncode}\n'.encode() + last_words)


if __name__ == '__main__':
  main(int(sys.argv[1]), sys.argv[2:])
