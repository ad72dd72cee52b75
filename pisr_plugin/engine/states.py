"""The training states of a run folder: which one to resume from, which ones to keep."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from basicsr.utils import get_time_str

from pisr_plugin import checkpoint
from pisr_plugin.errors import CheckpointError

_LEFTOVER = re.compile(r'\..+\.\d+\.tmp')


@dataclass
class Found:
    """What a search for a state to resume from came to.

    Attributes:
        iteration: Of the newest complete state; None when there are no states at all.
        skipped: Why newer ones are of no use, one line each.
    """

    iteration: int | None
    skipped: list[str] = field(default_factory=list)


class States:
    """The states under ``training_states/`` of a run folder, with the networks under ``models/`` that they need.

    Args:
        folder: The run folder.
        network: ``net_g`` or ``net_t``, of which each state needs its own.

    Attributes:
        best: Iterations whose networks :meth:`prune` has spared as the best ones.
    """

    def __init__(self, folder: Path, network: str) -> None:
        self.folder, self.network = folder, network
        self.best: set[int] = set()

    def file(self, iteration: int) -> Path:
        """Where the state of an iteration is."""
        return self.folder / 'training_states' / f'{iteration}.state'

    def iterations(self) -> list[int]:
        """Those that have a state, newest first."""
        files = (self.folder / 'training_states').glob('*.state')
        return sorted((int(file.stem) for file in files if file.stem.isdigit()), reverse=True)

    def newest(self) -> Found:
        """Finds the newest state that is complete: it and all its networks can be read.

        Raises:
            CheckpointError: there are states, and none is complete.
        """
        found = Found(None)
        for iteration in self.iterations():
            try:
                self._check(iteration)
            except CheckpointError as error:
                found.skipped.append(str(error))
                continue
            found.iteration = iteration
            return found
        if found.skipped:
            reasons = '\n'.join(f'  {line}' for line in found.skipped)
            raise CheckpointError(
                f'{self.folder}: none of its {len(found.skipped)} training states can be resumed:\n{reasons}\n'
                'Put whole files back, or start anew without --auto_resume, which moves this folder aside.'
            )
        return found

    def _check(self, iteration: int) -> None:
        path = self.file(iteration)
        state = checkpoint.load_file_safely(path)
        if not isinstance(state, dict) or state.get('iter') != iteration:
            raise CheckpointError(f'{path} is not the training state of iteration {iteration}.')
        for name in state.get('networks', [f'{self.network}_{iteration}.pth']):
            checkpoint.load_file_safely(self.folder / 'models' / name)

    def prune(self, keep: int, current: int, every: int, best: Iterable[int] = ()) -> None:
        """Deletes states that are not needed any more, and the networks of their iterations.

        These are the oldest ones, and those between the regular ones, which a run saved because it was stopped: in the
        end a folder holds the same however often its run was stopped.

        Args:
            keep: How many of the newest states stay.
            current: The iteration that was just saved; states beyond it, which a resumed run will write again, do not
                count.
            every: States are saved in iterations that are multiples of this.
            best: Iterations whose networks stay whatever their age, if they are regular ones.
        """
        best = {number for number in best if number % every == 0 or number == current}
        saved = [number for number in self.iterations() if number <= current]
        regular = [number for number in saved if number % every == 0 or number == current]
        old = set(saved) - set(regular[:keep])
        for iteration in (self.best - set(self.iterations()) | old) - best:
            for file in (self.folder / 'models').glob(f'net_*_{iteration}.pth'):
                file.unlink(missing_ok=True)
        for iteration in old:  # after its networks: what a kill leaves undone is found again by its state
            self.file(iteration).unlink(missing_ok=True)
        self.best = best

    def remove_leftovers(self) -> None:
        """Deletes the half-written files of runs that were killed while they saved."""
        for folder in (self.folder, self.folder / 'models', self.folder / 'training_states'):
            for file in folder.glob('.*.tmp'):
                if _LEFTOVER.fullmatch(file.name):
                    file.unlink(missing_ok=True)


def archive(folder: Path) -> Path | None:
    """Moves an earlier run out of the way, as BasicSR does; returns where to, None when there was none."""
    if not (any(folder.glob('metrics.jsonl')) or any(folder.glob('*/*.state')) or any(folder.glob('models/*.pth'))):
        return None
    target = folder.with_name(f'{folder.name}_archived_{get_time_str()}')
    folder.rename(target)
    return target
