"""One study, many workers: who works on which candidate. Any storage of Optuna's; no server, no lock but its own.

A worker takes a candidate by adding a running trial of it. Trials are numbered by the storage, one after the other: of
two that were added for the same candidate at once, the lower number has it. A worker says that it lives every few
seconds; what a silent one had is free again.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from vitedge.documents import Json
from vitedge.errors import VitedgeError, missing_package
from vitedge.files import process_start
from vitedge.search.space import Candidate

BEAT_S, GRACE_S = 10.0, 60.0
# A candidate that failed so often by itself is left out.
TRIES = 2
_UNITS, _WAYS = ("macs", "time"), ("auto", "tokens", "widths")
_PRECISIONS, _PRESETS = ("fp32", "fp16", "bf16", "int8"), ("", "linear", "full")


def load_optuna() -> Any:
    """The module, quiet. Raises VitedgeError where it is missing."""
    try:
        import optuna
    except ImportError as error:
        raise missing_package("optuna", "search", "`vitedge search`") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_study(storage: str, name: str, kind: str) -> Any:
    """The study of that name, made where it is missing. storage: sqlite:///FILE, journal:FILE, postgresql://...

    Raises VitedgeError where the storage can't be reached.
    """
    optuna = load_optuna()
    scheme = storage.partition(":")[0]
    for left in (4, 3, 2, 1, 0):
        try:
            study = optuna.create_study(
                storage=_storage(optuna, storage),
                study_name=name,
                directions=["minimize", "maximize"],
                load_if_exists=True,
            )
            with suppress(Exception), warnings.catch_warnings():  # names for the dashboard, an experiment of Optuna's
                warnings.simplefilter("ignore")
                study.set_metric_names([kind, "agreement"])
            return study
        except (ImportError, ModuleNotFoundError) as error:
            raise missing_package(str(error.name), "search", f"A storage of {scheme}") from error
        except Exception as error:  # each driver has its own
            # Two workers that make the tables at the same moment: one of them is told that they are there.
            if not left:
                why = str(error).strip().splitlines()[0][:300]
                raise VitedgeError(
                    f"The study '{name}' can't be opened.", f"{storage}: {why}", "Check --storage.", exit_code=1
                ) from error
            time.sleep(0.3)
    raise AssertionError


def _storage(optuna: Any, text: str) -> Any:
    if text.startswith("journal:"):
        from optuna.storages.journal import JournalFileBackend

        return optuna.storages.JournalStorage(JournalFileBackend(text.removeprefix("journal:")))
    if text.startswith(("postgresql://", "postgres://")):
        text = "postgresql+psycopg://" + text.partition("://")[2]
    connect = {"timeout": 60} if text.startswith("sqlite") else {}
    return optuna.storages.RDBStorage(text, engine_kwargs={"connect_args": connect})


def me() -> str:
    """This worker: its machine, its process, and when that began, since numbers come again."""
    return f"{socket.gethostname()}/{os.getpid()}/{process_start(os.getpid())}"


@dataclass(frozen=True)
class Claim:
    """A candidate that this worker has, by its trial's number."""

    candidate: Candidate
    number: int


class Claims:
    """The claims of one worker on a study."""

    def __init__(
        self, study: Any, worker: str | None = None, *, beat_s: float = BEAT_S, grace_s: float = GRACE_S
    ) -> None:
        self.study, self.worker = study, worker or me()
        self.beat_s, self.grace_s = beat_s, grace_s
        self.optuna = load_optuna()

    # What all workers have in common.

    def shared(self, name: str) -> Any:
        """What a worker has written of that name, or None."""
        return self.study.user_attrs.get(name)

    def share(self, name: str, value: Any) -> None:
        """Writes something for all workers."""
        self.study.set_user_attr(name, value)

    def measured(self) -> list[tuple[Candidate, Json]]:
        """Each that was measured and its result, once, in the order of their keys, whoever asks."""
        complete = [t for t in self._trials() if t.state == self.optuna.trial.TrialState.COMPLETE]
        first = {t.user_attrs["candidate"]: t for t in reversed(complete)}
        return [(Candidate.from_dict(t.params), t.user_attrs["result"]) for _, t in sorted(first.items())]

    def running(self) -> bool:
        """Whether a worker that lives is at a candidate."""
        running = [t for t in self._trials() if t.state == self.optuna.trial.TrialState.RUNNING]
        return any(self._lives(trial) for trial in running)

    # Claims.

    def claim(self, candidates: Sequence[Candidate]) -> Claim | None:
        """The next candidate that nobody has, of those that need no pruning that another is at first; None where all
        are done or taken."""
        while True:
            free, busy = self._free(candidates)
            if not free:
                return None
            chosen = next((one for one in free if not one.pruning or one.pruning not in busy), free[0])
            number = self._add(chosen)
            if self._mine(chosen.key, number):
                return Claim(chosen, number)
            self._tell(number, None)

    def open(self, candidates: Sequence[Candidate]) -> bool:
        """Whether any of the candidates is neither measured nor given up: somebody is at it."""
        states = self.optuna.trial.TrialState
        trials = self._trials()
        done = {t.user_attrs["candidate"] for t in trials if t.state == states.COMPLETE}
        return any(one.key not in done and self._failures(trials, one.key) < TRIES for one in candidates)

    def finish(self, claim: Claim, values: tuple[float, float], result: Mapping[str, object]) -> None:
        """The candidate was measured: (cost, agreement), and everything that is known of it.

        Where this worker was taken for lost meanwhile, another one's result counts.
        """
        with suppress(self.optuna.exceptions.UpdateFinishedTrialError):
            self._attribute(claim.number, "result", result)
        self._tell(claim.number, values)

    def release(self, claim: Claim, failed: str = "") -> None:
        """The candidate was not measured; `failed`: why it can't be."""
        if failed:
            with suppress(Exception):  # it is marked as failed in any case
                self._attribute(claim.number, "failed", failed[:1000])
        self._tell(claim.number, None)

    @contextmanager
    def beating(self, claim: Claim) -> Iterator[None]:
        """Says every few seconds that this worker lives."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(self.beat_s):
                with suppress(Exception):  # a storage that is away for a moment; the next beat tells
                    self._attribute(claim.number, "beat", time.time())

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _trials(self) -> list[Any]:
        # The list that Optuna keeps is read again, since others write to it.
        return [t for t in self.study.get_trials(deepcopy=False) if "candidate" in t.user_attrs]

    def _free(self, candidates: Sequence[Candidate]) -> tuple[list[Candidate], set[str]]:
        states = self.optuna.trial.TrialState
        trials, taken, busy = self._trials(), set(), set()
        for trial in trials:
            key = trial.user_attrs["candidate"]
            if trial.state == states.COMPLETE:
                taken.add(key)
            elif trial.state == states.RUNNING:
                if self._lives(trial):
                    taken.add(key)
                    busy.add(trial.user_attrs.get("pruning", ""))
                else:
                    self._tell(trial.number, None)
        free = [one for one in candidates if one.key not in taken and self._failures(trials, one.key) < TRIES]
        return free, busy

    def _failures(self, trials: Sequence[Any], key: str) -> int:
        return sum(t.user_attrs["candidate"] == key and bool(t.user_attrs.get("failed")) for t in trials)

    def _lives(self, trial: Any) -> bool:
        worker = str(trial.user_attrs.get("worker", ""))
        machine, _, rest = worker.partition("/")
        process, _, began = rest.partition("/")
        if machine == socket.gethostname() and process.isdigit():
            return str(process_start(int(process))) == began
        return time.time() - float(trial.user_attrs.get("beat", 0)) < self.grace_s

    def _add(self, candidate: Candidate) -> int:
        d = self.optuna.distributions
        token = uuid.uuid4().hex
        distributions = {
            "share": d.FloatDistribution(0.0, 0.9),
            "unit": d.CategoricalDistribution(_UNITS),
            "by": d.CategoricalDistribution(_WAYS),
            "depth": d.CategoricalDistribution((False, True)),
            "precision": d.CategoricalDistribution(_PRECISIONS),
            "preset": d.CategoricalDistribution(_PRESETS),
            "spare": d.FloatDistribution(0.0, 1.0),
        }
        names = {"candidate": candidate.key, "pruning": candidate.pruning, "name": str(candidate)}
        attributes: dict[str, str | float] = {**names, "worker": self.worker, "token": token, "beat": time.time()}
        state = self.optuna.trial.TrialState.RUNNING
        self.study.add_trial(
            self.optuna.trial.create_trial(
                state=state, params=candidate.to_dict(), distributions=distributions, user_attrs=attributes
            )
        )
        return next(t.number for t in self._trials() if t.user_attrs.get("token") == token)

    def _mine(self, key: str, number: int) -> bool:
        states = self.optuna.trial.TrialState
        for trial in self._trials():
            if trial.user_attrs["candidate"] == key and trial.number < number:
                running = trial.state == states.RUNNING and self._lives(trial)
                if running or trial.state == states.COMPLETE:
                    return False
        return True

    def _attribute(self, number: int, name: str, value: Any) -> None:
        trial = next(t for t in self._trials() if t.number == number)
        self.study._storage.set_trial_user_attr(trial._trial_id, name, value)

    def _tell(self, number: int, values: tuple[float, float] | None) -> None:
        states = self.optuna.trial.TrialState
        # Another worker may have told the same of a lost one, or have taken this one for lost.
        with suppress(ValueError, RuntimeError, self.optuna.exceptions.OptunaError):
            self.study.tell(number, values, state=states.COMPLETE if values else states.FAIL, skip_if_finished=True)
