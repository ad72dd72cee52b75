"""The training states of a run folder: finds the one to resume, deletes the old ones."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pisr_plugin.inference import checkpoint
from pisr_plugin.utils.errors import CheckpointError
from pisr_plugin.utils.files import archive_name

_LEFTOVER = re.compile(r'\..+\.\d+\.tmp')


@dataclass
class ResumePoint:
    """Where a run goes on.

    Attributes:
        iteration: Iteration of the newest complete state; None when the folder has no states.
        state: Content of that state; None when the folder has no states.
        skipped: One line for each newer state: why it cannot be used.
    """

    iteration: int | None = None
    state: dict | None = None
    skipped: list[str] = field(default_factory=list)


class TrainingStates:
    """The states under ``training_states/`` of a run folder, with the networks under ``models/`` that they need.

    Args:
        folder: The run folder.
        network: Label of the trained network's checkpoints, ``net_g`` or ``net_t``.

    Attributes:
        best: Iterations whose networks :meth:`prune` kept because their metrics were best.
    """

    def __init__(self, folder: Path, network: str) -> None:
        self.folder, self.network = folder, network
        self.best: set[int] = set()

    def file(self, iteration: int) -> Path:
        """Returns the path of the state of an iteration."""
        return self.folder / 'training_states' / f'{iteration}.state'

    def iterations(self) -> list[int]:
        """Returns the iterations that have a state, newest first."""
        files = (self.folder / 'training_states').glob('*.state')
        return sorted((int(file.stem) for file in files if file.stem.isdigit()), reverse=True)

    def newest(self) -> ResumePoint:
        """Reads the newest complete state. A state is complete when it and all its networks can be read.

        Raises:
            CheckpointError: The folder has states, but none is complete.
        """
        skipped: list[str] = []
        for iteration in self.iterations():
            try:
                return ResumePoint(iteration, self._read(iteration), skipped)
            except CheckpointError as error:
                skipped.append(str(error))
        if skipped:
            reasons = '\n'.join(f'  {line}' for line in skipped)
            raise CheckpointError(
                f'{self.folder}: none of its {len(skipped)} training states can be resumed:\n{reasons}\n'
                'Put whole files back, or start from the beginning without --auto_resume, which moves this folder away.'
            )
        return ResumePoint()

    def _read(self, iteration: int) -> dict:
        path = self.file(iteration)
        state = checkpoint.load_file_safely(path)
        checkpoint.check_training_state(state, path)
        if state['iter'] != iteration:
            raise CheckpointError(f'{path} is not the training state of iteration {iteration}.')
        for name in state.get('networks', [f'{self.network}_{iteration}.pth']):
            checkpoint.load_file_safely(self.folder / 'models' / name)
        return state

    def prune(self, keep: int, current: int, every: int, best: Iterable[int] = ()) -> None:
        """Deletes states that are not needed any more, and the networks of their iterations.

        A state is not needed when it is old, or when a run saved it between two regular states because it was stopped.
        So a folder ends with the same files however often its run was stopped.

        Args:
            keep: Number of the newest states to keep, at least 1.
            current: The iteration just saved. Later states are left alone: a resumed run writes them again.
            every: Regular states are saved every this many iterations.
            best: Iterations whose networks are kept whatever their age, if they are regular ones.
        """
        best = {number for number in best if number % every == 0 or number == current}
        saved = [number for number in self.iterations() if number <= current]
        regular = [number for number in saved if number % every == 0 or number == current]
        old = set(saved) - set(regular[:keep])
        for iteration in (self.best - set(self.iterations()) | old) - best:
            for file in (self.folder / 'models').glob(f'net_*_{iteration}.pth'):
                file.unlink(missing_ok=True)
        for iteration in old:  # after its networks: if a kill comes between, the next call finds the state again
            self.file(iteration).unlink(missing_ok=True)
        self.best = best

    def remove_leftovers(self) -> None:
        """Deletes the half-written files of runs that were killed while saving."""
        for folder in (self.folder, self.folder / 'models', self.folder / 'training_states'):
            for file in folder.glob('.*.tmp'):
                if _LEFTOVER.fullmatch(file.name):
                    file.unlink(missing_ok=True)


def archive(folder: Path) -> Path | None:
    """Moves an earlier run away, as BasicSR does.

    Args:
        folder: The run folder.

    Returns:
        Where the run is now; None when the folder holds no run.
    """
    if not (any(folder.glob('metrics.jsonl')) or any(folder.glob('*/*.state')) or any(folder.glob('models/*.pth'))):
        return None
    target = archive_name(folder)
    folder.rename(target)
    return target
