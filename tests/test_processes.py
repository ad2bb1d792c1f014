from __future__ import annotations

import os
import subprocess
import sys

from fastapi_balancer.processes import siblings, started_at, worker_id


def test_a_worker_id_names_the_process_and_is_new_each_time() -> None:
    first, second = worker_id(), worker_id()
    _host, pid, start, _random = first.rsplit("-", 3)
    assert (pid, start) == (str(os.getpid()), started_at(os.getpid()))
    assert first != second
    assert ":" not in first


def test_there_is_no_start_of_a_process_that_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert started_at(child.pid) is None


def test_processes_of_one_parent_with_the_same_command_are_siblings() -> None:
    code = "import sys; from fastapi_balancer.processes import siblings; {wait}"
    wait = "sys.stdout.write('x'); sys.stdout.flush(); sys.stdin.read(); print(siblings())"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code.format(wait=wait), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number in range(3)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.read(1) == b"x"  # all run by now
    answer, _ = children[0].communicate(timeout=10)
    assert int(answer) == 3
    for child in children[1:]:
        child.communicate(timeout=10)


def test_this_process_has_no_sibling() -> None:
    assert siblings() == 1
