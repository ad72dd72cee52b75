"""A Python process with PyTorch, BasicSR and the plugin imported, which forks the processes that tests start.

The imports cost a fresh process five seconds of CPU time; a fork costs a hundredth of that. The server runs no
operation of PyTorch and has one thread, so a child may do all that a fresh process may. A child leaves through the
interpreter's own end: exit handlers run and uncaught exceptions are printed as always.

``tests.processes.start`` starts the server and talks to it.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
import types
from contextlib import suppress

import pisr_plugin.cli.ablate
import pisr_plugin.cli.prepare_data
import pisr_plugin.cli.train  # noqa: F401  (imported for the children)


def serve(listener: socket.socket) -> dict:
    """Forks a process for each connection, until the tests end. Returns in that process only, with what it has to run.

    Args:
        listener: Socket that the tests connect to. Over a connection comes the request, a line of JSON with the file
            descriptor of the output; back go two lines, PID and exit code.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system removes guardians that have ended
    gc.freeze()  # the collector would copy the memory that children share
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return _guard(connection)
        connection.close()
    os._exit(0)  # the other end of stdin is closed


def _guard(connection: socket.socket) -> dict:
    """Forks the process, reports its PID and exit code, ends it with the test; returns in the process only."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, (output,), *_ = socket.recv_fds(connection, 1 << 20, 1)
    while not request.endswith(b'\n'):
        request += connection.recv(1 << 20)
    pid = os.fork()
    if pid:
        os.close(output)
        connection.send(f'{pid}\n'.encode())
        ended = os.pidfd_open(pid)
        if ended not in select.select([ended, connection], [], [])[0]:
            os.kill(pid, signal.SIGTERM)
            if not select.select([ended], [], [], 10)[0]:
                os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with suppress(BrokenPipeError):
            connection.send(f'{code}\n'.encode())
        os._exit(0)
    connection.close()
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    return json.loads(request)


def run(arguments: list[str], cwd: str, environment: dict[str, str]) -> None:
    """Runs ``python <arguments>`` in this process.

    Args:
        arguments: ``-c`` and code, ``-m`` and a module, or a script; then its arguments.
        cwd: Folder to run in.
        environment: All environment variables.
    """
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    if arguments[0] in ('-c', '-m'):
        option, what, *rest = arguments
        sys.argv[:], sys.path[0] = [option, *rest], ''
        if option == '-m':
            runpy.run_module(what, run_name='__main__', alter_sys=True)
        else:
            sys.modules['__main__'] = main = types.ModuleType('__main__')
            exec(compile(what, '<string>', 'exec'), main.__dict__)
    else:
        sys.argv[:], sys.path[0] = arguments, os.path.dirname(arguments[0])
        runpy.run_path(arguments[0], run_name='__main__')


if __name__ == '__main__':
    run(**serve(socket.socket(fileno=int(sys.argv[1]))))
