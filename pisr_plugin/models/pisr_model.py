"""The training step of a stage: a teacher that learns to reconstruct, or a student that learns from one."""

from __future__ import annotations

import functools
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from inspect import signature
from pathlib import Path

import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger, set_random_seed
from basicsr.utils.dist_util import master_only
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from pisr_plugin import checkpoint, random_state
from pisr_plugin.archs.traits import input_names
from pisr_plugin.data.degradations import build_degradation
from pisr_plugin.data.images import write_png
from pisr_plugin.data.noise import noise_batch
from pisr_plugin.distill.links import LinkedNetwork, build_links, transfer_weights
from pisr_plugin.errors import CheckpointError, OptionsError, choice
from pisr_plugin.evaluation.measure import Candidate, Measured, measure_images, reconstruct
from pisr_plugin.evaluation.protocol import protocol_of
from pisr_plugin.losses.vgg_weights import vgg_weights_told
from pisr_plugin.models.adversary import Adversary
from pisr_plugin.models.graph import CapturedStep
from pisr_plugin.models.step import DTYPES, Objective, StepOptions, Targets, TrainingStep, split_output
from pisr_plugin.models.update import Update, build_optimizer


@MODEL_REGISTRY.register()
class PISRModel(SRModel):
    """One stage: trains ``network_g``, or ``network_t`` when the stage has no ``network_g``.

    With ``network_g`` and ``network_t`` the latter is the frozen teacher: it supplies initial weights
    (``train.weight_transfer``) and target features (``train.distill_opt``), and is computed no further than the last
    tap. With one network alone this is plain SR training, plus ``train.imitation_opt`` for a network that also returns
    a compact feature.

    Losses, each logged by name:
        ``l_pix``: ``train.pixel_opt`` between reconstruction and gt (PISR, Eq. 3 and 7).
        ``l_imitation``: ``train.imitation_opt`` between compact feature and lq (Eq. 4).
        ``l_distill_<link>``: ``train.distill_opt.<link>`` between student and teacher features (Eq. 10).
        ``l_percep``, ``l_style``: ``train.perceptual_opt`` between reconstruction and gt.
        ``l_gan``: ``train.gan_opt`` of the reconstruction, as the discriminator ``network_d`` judges it.
        ``l_d_real``, ``l_d_fake``: the discriminator's own losses on gt and on the reconstruction.
        ``out_d_real``, ``out_d_fake``: its mean predictions, which are no losses.

    With ``network_d`` the step is BasicSR's of SRGAN: ``train.optim_d`` moves the discriminator in every iteration,
    ``train.optim_g`` the trained network in every ``train.net_d_iters``-th (1) beyond ``train.net_d_init_iters`` (0).
    Schedule, precision, accumulation, clipping and ``on_nan`` hold for both.

    ``train.degradation`` makes lq, and perhaps another gt, of each batch anew, for blind super-resolution.

    How a step is computed (precision, layout, compilation, clipping, ...) is said by
    :class:`~pisr_plugin.models.step.StepOptions`, whose keys stand in ``train``.

    Checkpoints: ``net_g_*`` or ``net_t_*`` hold the trained network alone, plain; ``net_e_*`` its estimators,
    ``net_d_*`` the discriminator.

    Args:
        opt: Resolved options of one stage, as BasicSR's ``parse_options`` returns them.

    Raises:
        PISRError: networks, taps, losses, checkpoints and scale do not fit together.
    """

    def __init__(self, opt: dict) -> None:
        BaseModel.__init__(self, opt)  # SRModel would build network_g alone
        self.stop_asked = lambda: False  # asked before each image of a validation
        self.label = 'g' if opt.get('network_g') else 't'
        self.step_options = StepOptions.of(opt.get('train') or {})
        self.memory_format = self.step_options.memory_format(self.device)
        self.net = self._build_network(self.label)
        self.print_network(self.net)
        if self.is_train:
            self.init_training_settings()

    # ---------------------------------------------------------------------------------------------- building

    def _build_network(self, label: str) -> nn.Module:
        """Builds ``network_<label>`` and loads ``path.pretrain_network_<label>``."""
        net = self._build(f'network_{label}', build_network).to(self.device, memory_format=self.memory_format)
        path = self.opt['path'].get(f'pretrain_network_{label}')
        if path is not None:
            self.load_network(
                net,
                path,
                self.opt['path'].get(f'strict_load_{label}', True),
                self.opt['path'].get(f'param_key_{label}', 'params'),
            )
        return net

    def _build(self, place: str, builder: Callable, option: dict | None = None):
        """Builds ``option``, by default the options at ``place``; a refused argument names the place."""
        if option is None:
            option = self.opt
            for key in place.split('.'):
                option = option[key]
        try:
            return builder(option)
        except (TypeError, ValueError, AssertionError, NotImplementedError, KeyError, AttributeError) as error:
            raise OptionsError(f'{place}: {option["type"]} cannot be built: {error}') from None

    def init_training_settings(self) -> None:
        train_opt = self.opt['train']
        resuming = bool(self.opt['path'].get('resume_state'))
        batch = self._sample_batch()
        links_opt = train_opt.get('distill_opt') or {}

        self.degradation = None
        if train_opt.get('degradation'):
            seed = (self.opt.get('manual_seed') or 0) + self.opt['rank']  # each rank's images are others
            self.degradation = build_degradation(train_opt['degradation'], scale=self.opt['scale'], seed=seed)

        self.teacher = None
        if self.label == 'g' and self.opt.get('network_t'):
            self.teacher = self._build_network('t').eval().requires_grad_(False)
        elif links_opt or train_opt.get('weight_transfer'):
            raise OptionsError(
                'train.distill_opt and train.weight_transfer need a network_g to train and a network_t to learn from.'
            )
        if train_opt.get('weight_transfer') and not resuming:
            copied = transfer_weights(train_opt['weight_transfer'], self.teacher, self.net, 'train.weight_transfer')
            get_root_logger().info(f'Weight transfer: {len(copied)} tensors of network_t into network_g.')

        self.cri_pix = self._criterion('pixel_opt')
        self.cri_imitation = self._criterion('imitation_opt')
        with vgg_weights_told('train.perceptual_opt') if train_opt.get('perceptual_opt') else nullcontext():
            self.cri_perceptual = self._criterion('perceptual_opt')
        self._check_network(batch)
        self._copy_for_ema()

        self.links = []
        if links_opt:
            self.links = build_links(
                links_opt,
                self.net,
                self.teacher,
                self._inputs(self.net, batch),
                self._inputs(self.teacher, batch),
                lambda place, option: self._build(place, build_network, option),
                lambda place, option: self._build(place, build_loss, option),
                'train.distill_opt',
            )
        self._build_discriminator(batch)
        if not (self.cri_pix or self.links or self.cri_perceptual or self.net_d):
            raise OptionsError(
                'train has neither pixel_opt nor distill_opt, perceptual_opt or gan_opt: there is nothing to minimise.'
            )

        linked = LinkedNetwork(self.net, self.links).to(self.device, memory_format=self.memory_format)
        with torch.no_grad():
            linked.eval()(*self._inputs(self.net, batch))  # the readers learn here what else they would in a step
        self.estimators = linked.estimators
        self.linked = self.model_to_device(linked.train())
        self._start_ema(resuming)
        self.setup_optimizers()
        self.setup_schedulers()
        self._setup_step(batch)

    def _build_discriminator(self, batch: dict[str, Tensor]) -> None:
        """Builds ``network_d`` and what it is trained by, and proves on one patch that they fit; None without them."""
        self.net_d = self.cri_gan = None
        train_opt = self.opt['train']
        needed = {'network_d': self.opt.get('network_d')}
        needed |= {f'train.{key}': train_opt.get(key) for key in ('gan_opt', 'optim_d')}
        missing = [place for place, option in needed.items() if not option]
        if missing and len(missing) < len(needed):
            raise OptionsError(f'{" and ".join(missing)}: missing; a GAN needs {", ".join(needed)} together.')
        if missing:
            return
        self.cri_gan = self._criterion('gan_opt')
        net = self._build_network('d')
        self.print_network(net)
        name, shape = type(net).__name__, tuple(batch['gt'].shape)
        try:
            with torch.no_grad():
                loss = self.cri_gan(net.eval()(batch['gt']), True, is_disc=True)
        except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError) as error:
            raise OptionsError(
                f'network_d: {name} with train.gan_opt {type(self.cri_gan).__name__} cannot judge images of shape '
                f'{shape} (datasets.train: gt_size, color): {error}'
            ) from None
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise OptionsError(f'train.gan_opt: {type(self.cri_gan).__name__} does not return a scalar.')
        self.net_d = self.model_to_device(net.train())

    def _setup_step(self, batch: dict[str, Tensor]) -> None:
        """Puts together what :meth:`optimize_parameters` runs."""
        options, warn = self.step_options, get_root_logger().warning
        size = self.opt['datasets']['train'].get('batch_size_per_gpu', options.accumulate)
        if size % options.accumulate:
            raise OptionsError(
                f'train.accumulate: {options.accumulate} does not divide datasets.train.batch_size_per_gpu, {size}.'
            )
        autocast = DTYPES.get(options.amp)
        targets = None
        if self.links:
            taps = [link.teacher for link in self.links]
            dtype = DTYPES.get(options.amp_teacher)
            targets = Targets(self.teacher, taps, input_names(self.teacher), dtype, autocast)
            try:
                for _ in range(2):  # the first pass runs to its end, the second to the last tap
                    targets(batch)
            except RuntimeError as error:
                precision = 'amp_teacher' if dtype else 'amp'
                name, value = type(self.teacher).__name__, getattr(options, precision)
                if value is None:
                    raise OptionsError(f'network_t: {name} does not run: {error}') from None
                raise OptionsError(f'train.{precision}: {name} does not run in {value}: {error}') from None
        objective = Objective(
            self.linked,
            self.links,
            input_names(self.net),
            self.cri_pix,
            self.cri_imitation,
            autocast,
            self.cri_perceptual,
            shows=bool(self.net_d),
        )
        self.updates = [
            Update(optimizer, options.grad_clip, options.on_nan == 'skip', options.amp == 'fp16')
            for optimizer in self.optimizers
        ]
        self.adversary = None
        if self.net_d:
            iters = [
                self.opt['train'].get(key, default) for key, default in (('net_d_iters', 1), ('net_d_init_iters', 0))
            ]
            self.adversary = Adversary(self.net_d, self.cri_gan, self.updates[1], *iters, autocast)
        after = self._update_ema if self.ema_decay else None
        self.training_step = TrainingStep(objective, targets, self.updates[0], options, self.adversary, after, warn)
        self.step = self.training_step
        if options.cuda_graph:
            reason = self._no_graph()
            if reason:
                warn(f'train.cuda_graph: {reason}; steps are launched one by one.')
            else:
                self.step = CapturedStep(self.training_step, warn)

    def _no_graph(self) -> str | None:
        """Why a step cannot be recorded as a CUDA graph, or None."""
        if self.device.type != 'cuda':
            return 'needs a CUDA device'
        if self.opt['dist']:
            return 'is for one process'
        if self.adversary:
            return 'does not record the step of a discriminator'
        if not self.optimizer_g.defaults.get('capturable'):
            return f'train.optim_g.type {type(self.optimizer_g).__name__} cannot be recorded'
        return None

    def _criterion(self, key: str) -> nn.Module | None:
        return self._build(f'train.{key}', build_loss).to(self.device) if self.opt['train'].get(key) else None

    def _copy_for_ema(self) -> None:
        """Makes the network that averages the weights, while nothing is hooked to the one that it copies."""
        self.ema_decay = self.opt['train'].get('ema_decay') or 0
        if not self.ema_decay:
            return
        self.net_ema = deepcopy(self.net).eval().requires_grad_(False)
        # listed once: to walk through the modules in every step takes longer than to average
        self._averaged, self._current = list(self.net_ema.parameters()), list(self.net.parameters())
        self._buffers = list(zip(self.net_ema.buffers(), self.net.buffers()))

    def _start_ema(self, resuming: bool) -> None:
        """Gives the averages their first values; only now do all ranks have the same weights."""
        if self.ema_decay and resuming:
            self.load_network(self.net_ema, self.opt['path'][f'pretrain_network_{self.label}'], True, 'params_ema')
        elif self.ema_decay:
            self.net_ema.load_state_dict(self.net.state_dict())

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Wraps the trained module for distributed runs, on CPU (gloo) as on GPU (NCCL)."""
        net = net.to(self.device)
        if not self.opt['dist']:
            return net
        device_ids = [torch.cuda.current_device()] if self.device.type == 'cuda' else None
        return DistributedDataParallel(
            net, device_ids=device_ids, find_unused_parameters=self.opt.get('find_unused_parameters', False)
        )

    def setup_optimizers(self) -> None:
        self.optimizer_g = self._optimizer('optim_g', self.linked)
        self.optimizers.append(self.optimizer_g)
        if self.net_d:
            self.optimizer_d = self._optimizer('optim_d', self.net_d)
            self.optimizers.append(self.optimizer_d)

    def _optimizer(self, key: str, net: nn.Module) -> torch.optim.Optimizer:
        options = dict(self.opt['train'][key])
        params = [p for p in net.parameters() if p.requires_grad]
        return self.get_optimizer(options.pop('type'), params, **options, place=f'train.{key}')

    def get_optimizer(
        self, optim_type: str, params: list, lr: float, place: str = 'train.optim_g', **kwargs
    ) -> torch.optim.Optimizer:
        """Builds any optimizer of torch.optim by name (the released BasicSR knows Adam alone)."""
        optimizers = {
            name: cls
            for name, cls in vars(torch.optim).items()
            if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
        }
        if optim_type not in optimizers:
            raise OptionsError(f'{place}.type: unknown {optim_type!r}. {choice(optim_type, optimizers)}')
        cls = optimizers[optim_type]
        if self.step_options.cuda_graph and self.device.type == 'cuda' and 'capturable' in signature(cls).parameters:
            kwargs['capturable'] = True
        try:
            return build_optimizer(cls, params, lr=lr, **kwargs)
        except (TypeError, ValueError) as error:
            raise OptionsError(f'{place}: {error}') from None

    # ---------------------------------------------------------------------------------------------- checks

    def _sample_batch(self) -> dict[str, Tensor]:
        """One noise image pair shaped like a training patch, drawn without touching the random state."""
        return {name: image.to(self.device) for name, image in noise_batch(self.opt, 1).items()}

    @torch.no_grad()
    def _check_network(self, batch: dict[str, Tensor]) -> None:
        """Proves on one patch that the trained network accepts the data and yields images of gt's size."""
        key, name = f'network_{self.label}', type(self.net).__name__
        inputs = self._inputs(self.net, batch)
        self.net.eval()
        try:
            sr, compact = split_output(self.net(*inputs))
        except (RuntimeError, ValueError) as error:
            raise OptionsError(
                f'{key}: {name} cannot process patches of shape {[tuple(x.shape) for x in inputs]} '
                f'(datasets.train: gt_size, color; scale): {error}'
            ) from None
        if sr.shape != batch['gt'].shape:
            raise OptionsError(
                f'{key}: {name} turns {tuple(inputs[0].shape)} into {tuple(sr.shape)}, but with scale '
                f'{self.opt["scale"]} and this data it should be {tuple(batch["gt"].shape)}. Check scale, '
                f'{key}.upscale, num_out_ch and datasets.train.color.'
            )
        if self.cri_imitation and (compact is None or compact.shape != batch['lq'].shape):
            found = 'none' if compact is None else f'one of shape {tuple(compact.shape)}'
            raise OptionsError(
                f'train.imitation_opt compares a compact feature with lq {tuple(batch["lq"].shape)}, '
                f'but {key} {name} returns {found}.'
            )

    # ---------------------------------------------------------------------------------------------- the step

    def _inputs(self, net: nn.Module, batch: dict[str, Tensor]) -> list[Tensor]:
        return [batch[name] for name in input_names(net)]

    def feed_data(self, data: dict) -> None:
        self.batch = {key: self._to_device(value) for key, value in data.items() if isinstance(value, Tensor)}
        if 'lq' in self.batch:  # else train.degradation is to make it
            self.lq = self.batch['lq']
        if 'gt' in self.batch:
            self.gt = self.batch['gt']

    def _to_device(self, value: Tensor) -> Tensor:
        memory_format = self.memory_format if value.ndim == 4 else torch.preserve_format
        return value.to(self.device, non_blocking=True, memory_format=memory_format)

    def optimize_parameters(self, current_iter: int) -> None:
        if self.degradation:
            self.feed_data(self.degradation(self.batch, current_iter))
        elif 'lq' not in self.batch:
            raise OptionsError(
                f'datasets.train: {self.opt["datasets"]["train"].get("type")} gives {", ".join(self.batch)} and no lq; '
                'train.degradation is to make it.'
            )
        active = [link.active(current_iter) for link in self.links]
        if self.adversary:
            self.losses = self.training_step(self.batch, active, self.adversary.lets_move(current_iter))
        else:
            self.losses = self.step(self.batch, active)

    @torch.no_grad()
    def _update_ema(self) -> None:
        torch._foreach_lerp_(self._averaged, self._current, 1 - self.ema_decay)
        for averaged, current in self._buffers:
            averaged.copy_(current)

    @property
    def nonfinite(self) -> Tensor:
        """How many losses or gradients were not finite, see :class:`~pisr_plugin.models.update.Update`."""
        return functools.reduce(torch.add, [update.nonfinite for update in self.updates])

    def get_current_log(self) -> OrderedDict:
        """Reads the losses back from the device; called when printing, not in every step."""
        log = self.reduce_loss_dict(self.losses)
        if self.step_options.on_nan == 'skip':
            log['skipped'] = float(self.nonfinite)
        return log

    # ---------------------------------------------------------------------------------------------- testing

    @torch.no_grad()
    def test(self) -> None:
        candidate = self._candidate()
        training = candidate.net.training
        candidate.net.eval()
        self.output = reconstruct(candidate, self._inputs(candidate.net, self.batch))
        candidate.net.train(training)

    def _candidate(self, channels: int = 3) -> Candidate:
        """The network that is shipped; ``channels`` where its options do not say."""
        net, options = getattr(self, 'net_ema', self.net), self.opt[f'network_{self.label}']
        return Candidate.of(f'net_{self.label}', net, options, self.opt['scale'], self.device, channels)

    def dist_validation(self, dataloader, current_iter, tb_logger, save_img) -> None:
        self.nondist_validation(dataloader, current_iter, tb_logger, save_img)

    def nondist_validation(self, dataloader, current_iter, tb_logger, save_img) -> None:
        """Validates on the images of one set, each rank on its share, by ``val.protocol``.

        ``metric_results`` holds the means over all images then, the same on all ranks; None when ``stop_asked`` ended
        it early on any rank.
        """
        dataset, metrics = dataloader.dataset.opt['name'], self.opt['val'].get('metrics') or {}
        # one sum for each metric, the number of images, and whether a rank stopped early
        sums = torch.zeros(len(metrics) + 2, dtype=torch.float64)
        for one in tqdm(self._measured(dataloader), unit='image', disable=not self.opt['val'].get('pbar')):
            if save_img:
                file = Path(self._image_file(dataset, one.name, current_iter))
                file.parent.mkdir(parents=True, exist_ok=True)
                write_png(file, one.picture(self.opt['scale']))
            sums[:-2] += torch.tensor(list(one.values.values()))
            sums[-2] += 1
            if self.stop_asked():
                sums[-1] = 1
                break
        if self.opt['dist']:
            sums = sums.to(self.device)
            torch.distributed.all_reduce(sums)
        *totals, count, stopped = sums.tolist()
        self.metric_results = None if stopped else {name: total / count for name, total in zip(metrics, totals)}
        if self.metric_results:
            self._initialize_best_metric_results(dataset)
            for metric, value in self.metric_results.items():
                self._update_best_metric_result(dataset, metric, value, current_iter)
            self._log_validation_metric_values(current_iter, dataset, tb_logger)

    def _measured(self, dataloader: DataLoader) -> Iterator[Measured]:
        """Measures this rank's images of one set with the network that is shipped."""
        data_opt = dataloader.dataset.opt
        candidate = self._candidate(1 if data_opt.get('color') == 'y' else 3)
        training = candidate.net.training
        candidate.net.eval()
        try:
            yield from measure_images(
                candidate,
                data_opt,
                protocol_of(self.opt),
                self.opt['val'].get('metrics') or {},
                share=(self.opt['rank'], self.opt['world_size']) if self.opt['dist'] else (0, 1),
            )
        finally:
            candidate.net.train(training)

    def _image_file(self, dataset: str, name: str, current_iter: int) -> str:
        if self.is_train:
            return self._file('visualization', os.path.join(name, f'{name}_{current_iter}.png'))
        suffix = self.opt['val'].get('suffix') or self.opt['name']
        return self._file('visualization', os.path.join(dataset, f'{name}_{suffix}.png'))

    # ---------------------------------------------------------------------------------------------- files

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True, param_key: str = 'params') -> None:
        skipped = checkpoint.load_network(self.get_bare_model(net), load_path, param_key, strict)
        logger = get_root_logger()
        logger.info(f'Loading {type(net).__name__} model from {load_path}, with param key: [{param_key}].')
        if skipped:
            logger.warning(f'{len(skipped)} tensors keep their initial values, e.g. {skipped[0]}.')

    def save(self, epoch: int, current_iter: int) -> None:
        """Saves network, estimators and, but for the last time (``current_iter=-1``), the training state."""
        nets = {'params': self.net}
        if self.ema_decay:
            nets['params_ema'] = self.net_ema
        self.save_network(list(nets.values()), f'net_{self.label}', current_iter, list(nets))
        if len(self.estimators):
            self.save_network(self.estimators, 'net_e', current_iter)
        if self.net_d:
            self.save_network(self.net_d, 'net_d', current_iter)
        if current_iter != -1:
            self.save_training_state(epoch, current_iter)

    @master_only
    def save_network(self, net, net_label: str, current_iter: int, param_key='params') -> None:
        nets, keys = (net, param_key) if isinstance(net, list) else ([net], [param_key])
        content = {
            key: {
                name: value.detach().cpu().contiguous() for name, value in self.get_bare_model(one).state_dict().items()
            }
            for one, key in zip(nets, keys)
        }
        checkpoint.save_atomic(content, self._file('models', f'{net_label}_{_when(current_iter)}.pth'))

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """Saves what a resumed run needs beside the networks; written last, it says that they are there.

        All ranks call it, because each has random numbers of its own; rank 0 writes.
        """
        random_states = [random_state.capture()]
        if self.opt['dist']:
            random_states *= self.opt['world_size']
            torch.distributed.all_gather_object(random_states, random_states[0])
        if self.opt['rank'] != 0:
            return
        state = {
            'epoch': epoch,
            'iter': current_iter,
            'stage': self.opt['name'],
            'networks': [f'{name}_{current_iter}.pth' for name in self._network_names()],
            'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
            'schedulers': [_plain(scheduler.state_dict()) for scheduler in self.schedulers],
            'world_size': self.opt['world_size'],
            'random_states': random_states,
        }
        state |= {key: scaler.state_dict() for key, scaler in self._scalers().items()}
        if self.opt['train'].get('on_nan') == 'skip':
            state['nonfinite'] = int(self.nonfinite)
        if hasattr(self, 'best_metric_results'):
            # Metrics return numpy numbers, which a weights-only load refuses.
            state['best_metric_results'] = {
                dataset: {metric: {**best, 'val': float(best['val'])} for metric, best in metrics.items()}
                for dataset, metrics in self.best_metric_results.items()
            }
        checkpoint.save_atomic(state, self._file('training_states', f'{current_iter}.state'))

    def _network_names(self) -> list[str]:
        return [f'net_{self.label}', *(['net_e'] if len(self.estimators) else []), *(['net_d'] if self.net_d else [])]

    def _scalers(self) -> dict[str, torch.amp.GradScaler]:
        """The loss scaling, if any, by the name it has in a training state."""
        return {key: one.scaler for key, one in zip(('scaler', 'scaler_d'), self.updates) if one.scaler}

    def resume_training(self, resume_state: dict) -> None:
        """Goes on from a training state; the networks were loaded when the model was built.

        Raises:
            CheckpointError: it lacks something, or is that of another optimiser.
        """
        path = self._file('training_states', f'{resume_state["iter"]}.state')
        try:
            # of a schedule the position alone: its shape is what the options say now
            position = ('last_epoch', '_step_count', '_last_lr', 'base_lrs')
            schedulers = [{key: saved[key] for key in position} for saved in resume_state['schedulers']]
            super().resume_training({**resume_state, 'schedulers': schedulers})
            for key, scaler in self._scalers().items():
                if key in resume_state:
                    scaler.load_state_dict(resume_state[key])
        except (ValueError, KeyError, AssertionError, RuntimeError) as error:
            raise CheckpointError(
                f'{path} does not fit the optimiser and schedule of these options (train.optim_g, train.scheduler): '
                f'{error}'
            ) from None
        if 'best_metric_results' in resume_state:
            self.best_metric_results = resume_state['best_metric_results']
        if 'nonfinite' in resume_state and self.opt['train'].get('on_nan') == 'skip':
            self.updates[0].skipped.fill_(resume_state['nonfinite'])  # the sum is what counts
        if len(self.estimators):
            path = self._file('models', f'net_e_{resume_state["iter"]}.pth')
            if not os.path.isfile(path):
                raise CheckpointError(f'{path} is missing: the estimators cannot be resumed without it.')
            self.load_network(self.estimators, path)
        self._resume_random_state(resume_state)

    def _resume_random_state(self, resume_state: dict) -> None:
        """Restores this rank's random state, or starts a new one that no earlier run has used."""
        states, world_size = resume_state.get('random_states'), self.opt['world_size']
        if states and len(states) == world_size:
            random_state.restore(states[self.opt['rank']])
            return
        saved = f'by {len(states)} process(es), not {world_size}' if states else 'without random states'
        get_root_logger().warning(f'The state was saved {saved}: random numbers such as those of dropout start anew.')
        set_random_seed(self.opt['manual_seed'] + self.opt['rank'] + resume_state['iter'])

    def _file(self, folder: str, name: str) -> str:
        return os.path.join(self.opt['path'][folder], name)


def _plain(state: dict) -> dict:
    """Replaces BasicSR's Counter of milestones, which torch before 2.6 refuses in a weights-only load, by a dict."""
    return {key: dict(value) if isinstance(value, Counter) else value for key, value in state.items()}


def _when(current_iter: int) -> int | str:
    return 'latest' if current_iter == -1 else current_iter
