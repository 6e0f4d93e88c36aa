import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future

import pytest

from look import until
from maildir_async.disk import threads as crew_module
from maildir_async.disk.threads import Crew
from support import forked

NAME = "test-crew"
WAIT_S = 30.0


@pytest.fixture
def make_crew(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Crew]]:
    """Makes crews, whose threads are gone when the test is over."""
    crews: list[Crew] = []

    def make(size: int) -> Crew:
        crews.append(Crew(size, NAME))
        return crews[-1]

    yield make
    monkeypatch.setattr(crew_module, "IDLE_S", 0.001)
    for crew in crews:
        while crew.threads:
            ended = threading.Event()
            crew.run(ended.set)  # wakes a thread, which then ends if it is given the time
            assert ended.wait(WAIT_S)
            for thread in ours():
                thread.join(0.01)
    for thread in ours():
        thread.join(WAIT_S)
    assert ours() == []


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(NAME)]


class Work:
    """Jobs that wait to be let go, and count how many run."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.running = threading.Semaphore(0)
        self.done: list[int] = []
        self.threads: set[threading.Thread] = set()

    def job(self, number: int = 0) -> Callable[[], object]:
        def run() -> None:
            self.threads.add(threading.current_thread())
            self.running.release()
            assert self.go.wait(WAIT_S)
            self.done.append(number)

        return run

    def wait_running(self, count: int) -> None:
        for _ in range(count):
            assert self.running.acquire(timeout=WAIT_S)


def test_threads_start_on_demand(make_crew: Callable[[int], Crew]) -> None:
    """There is no thread before there is work, and one more for each job that none is free for."""
    crew, work = make_crew(3), Work()
    assert crew.threads == len(ours()) == 0
    for count in (1, 2, 3):
        crew.run(work.job())
        work.wait_running(1)
        assert crew.threads == len(ours()) == count
    work.go.set()
    assert crew.wait_idle(WAIT_S)


def test_threads_are_bounded(make_crew: Callable[[int], Crew]) -> None:
    """However many jobs there are, no more threads than the size run them; all are run, whoever gives them."""
    crew, work = make_crew(3), Work()
    for number in range(20):
        crew.run(work.job(number))
    work.wait_running(3)
    assert crew.threads == len(ours()) == 3
    work.go.set()
    assert crew.wait_idle(WAIT_S)
    assert sorted(work.done) == list(range(20))
    assert len(work.threads) == 3


def test_an_idle_thread_is_used_again(make_crew: Callable[[int], Crew]) -> None:
    """A job that comes while a thread is idle starts no other."""
    crew, work = make_crew(5), Work()
    work.go.set()
    for _ in range(10):
        crew.run(work.job())
        assert crew.wait_idle(WAIT_S)
    assert len(work.threads) == crew.threads == 1


def test_jobs_run_in_the_order_given(make_crew: Callable[[int], Crew]) -> None:
    """One thread runs jobs first come, first served."""
    crew, work = make_crew(1), Work()
    for number in range(50):
        crew.run(work.job(number))
    work.go.set()
    assert crew.wait_idle(WAIT_S)
    assert work.done == list(range(50))


def test_a_thread_that_is_being_started_may_run_a_finalizer(
    make_crew: Callable[[int], Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finalizer that the new thread runs before it is known to have started may give the crew a job of its own."""
    crew, ran = make_crew(2), [threading.Event(), threading.Event()]
    identify, finalizers = threading.Thread._set_ident, [ran[1].set]  # type: ignore[attr-defined]

    def with_finalizer(thread: threading.Thread) -> None:
        if thread.name.startswith(f"{NAME}-") and finalizers:
            crew.run(finalizers.pop())
        identify(thread)

    monkeypatch.setattr(threading.Thread, "_set_ident", with_finalizer)
    threading.Thread(target=crew.run, args=(ran[0].set,), daemon=True).start()
    assert all(event.wait(WAIT_S) for event in ran)


@pytest.mark.parametrize("threads", [1, 4])
def test_idle_threads_end(make_crew: Callable[[int], Crew], monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """Threads that find no work end by themselves, and the crew works again afterwards with new ones."""
    monkeypatch.setattr(crew_module, "IDLE_S", 0.001)
    crew = make_crew(threads)
    for _ in range(2):
        work = Work()
        for number in range(threads):
            crew.run(work.job(number))
        work.wait_running(threads)
        assert crew.threads == threads
        work.go.set()
        for thread in work.threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()
        assert sorted(work.done) == list(range(threads))
        assert crew.threads == 0


def test_the_last_that_became_idle_works_next(make_crew: Callable[[int], Crew]) -> None:
    """Of several idle threads one and the same has all jobs that come one after the other."""
    crew, work = make_crew(4), Work()
    for _ in range(4):
        crew.run(work.job())
    work.wait_running(4)
    work.go.set()
    until(lambda: len(crew._idle) == 4)
    again = Work()
    again.go.set()
    for number in range(20):
        last = crew._idle[-1]
        crew.run(again.job(number))
        until(lambda: len(crew._idle) == 4)
        assert crew._idle[-1] is last
    assert again.done == [*range(20)]
    assert len(again.threads) == 1


def test_the_surplus_ends_while_a_few_jobs_come(
    make_crew: Callable[[int], Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that a burst took, or a disk while it hung, end although jobs keep coming: one does those."""
    monkeypatch.setattr(crew_module, "IDLE_S", 0.2)
    crew, work = make_crew(6), Work()
    for _ in range(6):
        crew.run(work.job())
    work.wait_running(6)
    assert crew.threads == 6
    work.go.set()
    for _ in range(2000):
        done = threading.Event()
        crew.run(done.set)
        assert done.wait(WAIT_S)
        if crew.threads == 1:
            break
        time.sleep(0.005)  # so many a second that six threads in turn would never be idle for so long
    assert crew.threads == 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_finalizers_job_is_run_although_its_thread_ends(
    make_crew: Callable[[int], Crew], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A job that is given in the very thread whose time is over, by a finalizer as it is counted out, is run."""
    monkeypatch.setattr(crew_module, "IDLE_S", 0.001)
    crew, done = make_crew(1), threading.Event()

    class Idle(list[object]):
        def remove(self, idler: object) -> None:
            if when == "before" and not done.is_set():
                crew.run(done.set)
            super().remove(idler)
            if when == "after" and not done.is_set():
                crew.run(done.set)

    crew._idle = Idle()  # type: ignore[assignment]
    crew.run(lambda: None)
    assert done.wait(WAIT_S)
    until(lambda: crew.threads == 0)


def test_no_job_is_overlooked_as_threads_end(make_crew: Callable[[int], Crew], monkeypatch: pytest.MonkeyPatch) -> None:
    """A job given at the very moment its thread ends is run: thousands of them, from several threads."""
    monkeypatch.setattr(crew_module, "IDLE_S", 0.0001)
    crew = make_crew(2)
    done = [threading.Event() for _ in range(400)]

    def give(events: list[threading.Event]) -> None:
        for event in events:
            crew.run(event.set)
            assert event.wait(WAIT_S)

    givers = [threading.Thread(target=give, args=(done[at::4],)) for at in range(4)]
    for giver in givers:
        giver.start()
    for giver in givers:
        giver.join(WAIT_S)
    assert all(event.is_set() for event in done)


def test_threads_are_daemons(make_crew: Callable[[int], Crew]) -> None:
    """A disk that hangs does not keep a program from ending, and the threads tell whose they are."""
    crew = make_crew(1)
    crew.run(lambda: None)
    assert [thread.daemon for thread in ours()] == [True]


def test_wait_idle(make_crew: Callable[[int], Crew]) -> None:
    """wait_idle says that nothing runs, or, in time, that something still does."""
    crew, work = make_crew(1), Work()
    assert crew.wait_idle(0)
    crew.run(work.job())
    crew.run(work.job())
    assert not crew.wait_idle(0)
    assert not crew.wait_idle(-1)
    work.wait_running(1)
    assert not crew.wait_idle(0.01)
    work.go.set()
    assert crew.wait_idle(WAIT_S)
    assert len(work.done) == 2


def test_a_job_is_let_go_of(make_crew: Callable[[int], Crew]) -> None:
    """An idle thread keeps nothing of its last job alive, a message for one."""

    class Message:
        pass

    crew, message = make_crew(1), Message()
    seen = weakref.ref(message)
    future = crew.submit(id, message)
    future.result(WAIT_S)
    assert crew.wait_idle(WAIT_S)
    del message, future
    gc.collect()
    assert seen() is None
    assert crew.threads == 1


# concurrent.futures.


def test_submit(make_crew: Callable[[int], Crew]) -> None:
    """A crew is an Executor: submit returns a future of the result, or of what was raised."""
    crew: Executor = make_crew(2)
    assert crew.submit(divmod, 7, 2).result(WAIT_S) == (3, 1)
    assert crew.submit(int, "11", base=2).result(WAIT_S) == 3
    with pytest.raises(ZeroDivisionError):
        crew.submit(divmod, 1, 0).result(WAIT_S)
    with pytest.raises(SystemExit):
        crew.submit(exit_job).result(WAIT_S)
    assert list(crew.map(abs, [-1, -2])) == [1, 2]


def exit_job() -> None:
    raise SystemExit(3)


def test_a_cancelled_future_is_not_run(make_crew: Callable[[int], Crew]) -> None:
    """A future cancelled before a thread came to it is not run; one that is running cannot be cancelled."""
    crew, work = make_crew(1), Work()
    running: Future[object] = crew.submit(work.job(1))
    work.wait_running(1)
    waiting: Future[object] = crew.submit(work.job(2))
    assert (running.cancel(), waiting.cancel()) == (False, True)
    work.go.set()
    assert crew.wait_idle(WAIT_S)
    assert work.done == [1]


def test_shutdown_does_nothing(make_crew: Callable[[int], Crew]) -> None:
    """Whoever shuts a crew down, as asyncio does with an executor it is given, does not take it from others."""
    crew = make_crew(1)
    crew.shutdown(wait=True, cancel_futures=True)
    with crew:
        pass
    assert crew.submit(abs, -1).result(WAIT_S) == 1


async def test_asyncio_runs_in_it(make_crew: Callable[[int], Crew]) -> None:
    """Asyncio takes it for ``run_in_executor``, and the call is made in one of its threads."""
    name = await asyncio.get_running_loop().run_in_executor(make_crew(1), lambda: threading.current_thread().name)
    assert name.startswith(NAME)


# Forks, and systems that give no thread.


def test_a_forked_child_has_a_working_crew(make_crew: Callable[[int], Crew]) -> None:
    """A child has none of its parent's threads and jobs, and the crew works there; the parent's goes on."""
    crew, work = make_crew(2), Work()
    for number in range(4):
        crew.run(work.job(number))
    work.wait_running(2)

    def child() -> tuple[int, bool, int, list[int]]:
        before = crew.threads
        idle = crew.wait_idle(0)
        return before, idle, crew.submit(abs, -1).result(WAIT_S), work.done

    assert forked(child, children=2) == [(0, True, 1, [])] * 2
    assert crew.threads == 2
    work.go.set()
    assert crew.wait_idle(WAIT_S)
    assert sorted(work.done) == [0, 1, 2, 3]


def test_no_thread_to_be_had(make_crew: Callable[[int], Crew], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system gives no thread, run raises, the job is never run, and the crew works once there are threads."""
    crew, work = make_crew(2), Work()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            crew.run(work.job(1))
    assert (crew.threads, crew.wait_idle(0)) == (0, True)
    work.go.set()
    crew.run(work.job(2))
    assert crew.wait_idle(WAIT_S)
    assert work.done == [2]


def test_fewer_threads_will_do(make_crew: Callable[[int], Crew], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a second thread cannot be had, the first runs all jobs, and nothing is raised."""
    crew, work = make_crew(2), Work()
    crew.run(work.job(1))
    work.wait_running(1)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        crew.run(work.job(2))
    work.go.set()
    assert crew.wait_idle(WAIT_S)
    assert (work.done, crew.threads) == ([1, 2], 1)
