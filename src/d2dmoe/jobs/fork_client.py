"""Runs a script in a process that the fork server made, or in an interpreter of its own where there
is no server.

    python -I -S fork_client.py SOCKET PYTHON SCRIPT

It imports little, because every job waits for it, and behaves as the script's process would: what
tells it to terminate reaches the job, and the job's end is its end.
"""

import json
import os
import signal
import socket
import sys


def main() -> None:
    """Ask for the process; wait for its end."""
    address, python, *command = sys.argv[1:]
    connection = socket.socket(socket.AF_UNIX)
    try:
        if command[0].startswith("-"):
            raise OSError("not a script")
        connection.connect(address)
        request = {"command": command, "folder": os.getcwd(), "environment": dict(os.environ)}
        socket.send_fds(connection, [b"\n"], [0, 1, 2])
        connection.sendall(json.dumps(request).encode() + b"\n")
    except OSError:
        os.execv(python, [python, *command])
    job = Job()
    replies = connection.makefile("r")
    job.start(int(replies.readline() or 0))
    job.end(replies.readline())


class Job:
    """The process that runs the script."""

    def __init__(self) -> None:
        self.pid = 0
        self.asked = 0  # a signal that came before the process was there
        signal.signal(signal.SIGTERM, self._forward)

    def start(self, pid: int) -> None:
        """It has this id; 0 where the server died before."""
        self.pid = pid
        if self.asked:
            self._forward(self.asked)

    def end(self, code: str) -> None:
        """End as it did, by a signal where the code is negative; with it, where the server died."""
        if not code:
            self._forward(signal.SIGKILL)
            sys.exit("the fork server was killed")
        if int(code) >= 0:
            sys.exit(int(code))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), -int(code))

    def _forward(self, number: int, _frame: object = None) -> None:
        self.asked = number
        if self.pid:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass  # it has ended


if __name__ == "__main__":
    main()
