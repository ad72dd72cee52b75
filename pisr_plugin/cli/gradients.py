"""Show the gradient of each loss term of a stage: is its weight large enough to have an effect?

``pisr-gradients -opt pisr_fsrcnn_x2 --stage student``
"""

from __future__ import annotations

import argparse

from pisr_plugin.cli import common
from pisr_plugin.utils.errors import OptionsError
from pisr_plugin.utils.logging import quiet


def main(argv: list[str] | None = None) -> int:
    """Command line of ``tools/gradients.py`` and ``pisr-gradients``."""
    parser = common.recipe_parser('Show the gradient that each loss term gives to the network that a stage trains.')
    parser.add_argument('--batches', type=int, default=4, metavar='N', help='training batches to average over (4)')
    args = parser.parse_args(argv)
    return common.run(lambda: gradients(args))


def gradients(args: argparse.Namespace) -> int:
    """Prints a table for the beginning of the stage, and one for its end if it is finished; returns the exit code."""
    from basicsr.data import build_dataset

    from pisr_plugin.config.runtime import runtime_options
    from pisr_plugin.data.loading.train_loader import build_train_loader
    from pisr_plugin.diagnostics.gradients import gradient_stats, to_markdown
    from pisr_plugin.engine.train import build_trial, preflight
    from pisr_plugin.models.pisr_model import PISRModel

    if args.batches < 1:
        raise OptionsError(f'--batches {args.batches}: out of range. Expected at least 1.')
    stage = common.load_stage(args)
    preflight([stage])
    opt = runtime_options(stage, stage.folder, is_train=True)
    model = build_trial(opt, ())
    if not isinstance(model, PISRModel):
        raise OptionsError(f'model_type: not supported (found {opt["model_type"]}). Expected PISRModel.')
    block = opt['datasets']['train']
    with quiet():
        dataset = build_dataset(block)
    with build_train_loader(dataset, block, seed=opt['manual_seed'], device=model.device) as loader:
        batches = [next(loader) for _ in range(args.batches)]

    print(f'{stage.name or stage.options["name"]}, {args.batches} batches of {block["batch_size_per_gpu"]}')
    print(to_markdown('at the beginning', gradient_stats(model, batches, 1)))
    if stage.checkpoint.is_file():
        with quiet():
            model.load_network(model.net, str(stage.checkpoint))
            if len(model.estimators):
                model.load_network(model.estimators, str(stage.checkpoint.with_name('net_e_latest.pth')))
        print(to_markdown('at the end', gradient_stats(model, batches, opt['train']['total_iter'])))
    return 0
