"""The model of a stage: a teacher that learns to reconstruct, or a student that learns from one."""

from __future__ import annotations

import functools
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from basicsr.losses import build_loss
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pisr_plugin.archs.network_info import required_inputs
from pisr_plugin.data.datasets.patches import noise_batch
from pisr_plugin.degradations.registry import build_degradation
from pisr_plugin.distill.links import LinkedNetwork, build_links, transfer_weights
from pisr_plugin.evaluation.measure import reconstruct
from pisr_plugin.inference import checkpoint
from pisr_plugin.inference.descriptor import ModelDescriptor, build
from pisr_plugin.losses.vgg_weights import vgg_weights_told
from pisr_plugin.models import dry_run, training_state
from pisr_plugin.models.cuda_graph import CUDAGraphStep, side_stream
from pisr_plugin.models.ema import WeightAverage
from pisr_plugin.models.fast_prelu import use_fast_prelu
from pisr_plugin.models.gan import GANStep
from pisr_plugin.models.optim import OptimizerStep
from pisr_plugin.models.optimizers import build_optimizer
from pisr_plugin.models.step import DTYPES, StepOptions, TeacherFeatures, TrainingLosses, TrainingStep
from pisr_plugin.models.validation import validate
from pisr_plugin.utils.devices import evaluating
from pisr_plugin.utils.errors import CheckpointError, OptionsError

_RECORDABLE = {'pisr_plugin', 'basicsr', 'torch', 'torchvision'}  # packages whose modules decide nothing in Python


@MODEL_REGISTRY.register()
class PISRModel(SRModel):
    """One stage: trains ``network_g``, or ``network_t`` when the stage has no ``network_g``.

    With both networks, ``network_t`` is the frozen teacher. It supplies initial weights (``train.weight_transfer``)
    and features (``train.distill_opt``), and is computed no further than the last tap. With one network this is plain
    SR training, plus ``train.imitation_opt`` for a network that also returns a compact feature.

    Losses, each logged by name:
        ``l_pix``: ``train.pixel_opt`` between reconstruction and gt (PISR, Eq. 3 and 7).
        ``l_imitation``: ``train.imitation_opt`` between compact feature and lq (Eq. 4).
        ``l_distill_<link>``: ``train.distill_opt.<link>`` between student and teacher features (Eq. 10).
        ``l_percep``, ``l_style``: ``train.perceptual_opt`` between reconstruction and gt.
        ``l_gan``: ``train.gan_opt`` of the reconstruction, judged by the discriminator ``network_d``.
        ``l_d_real``, ``l_d_fake``: the discriminator's own losses on gt and on the reconstruction.
        ``out_d_real``, ``out_d_fake``: its mean predictions, which are not losses.

    With ``network_d`` the step is that of BasicSR's SRGAN: ``train.optim_d`` updates the discriminator in every
    iteration, ``train.optim_g`` the trained network in every ``train.net_d_iters``-th (1) after the first
    ``train.net_d_init_iters`` (0). Schedule, precision, accumulation, clipping and ``on_nan`` apply to both.

    ``train.degradation`` computes a new lq, and for some kinds a new gt, for each batch: blind super-resolution.

    :class:`~pisr_plugin.models.step.StepOptions` lists the keys of ``train`` that say how a step is computed
    (precision, layout, compilation, clipping, ...).

    Checkpoints: ``net_g_*`` or ``net_t_*`` hold the trained network only, as plain BasicSR; ``net_e_*`` its
    estimators, ``net_d_*`` the discriminator.

    Args:
        opt: Resolved options of one stage, as BasicSR's ``parse_options`` returns them.

    Raises:
        PISRError: networks, taps, losses, checkpoints and scale do not fit together.
    """

    def __init__(self, opt: dict) -> None:
        BaseModel.__init__(self, opt)  # SRModel's own would build network_g only
        self.stop_asked = lambda: False  # called after each image of a validation
        self.label = 'g' if opt.get('network_g') else 't'
        self.step_options = StepOptions.of(opt.get('train') or {})
        self.memory_format = self.step_options.memory_format(self.device)
        self.ema: WeightAverage | None = None
        self.net = self._build_network(self.label)
        self.print_network(self.net)
        if self.is_train:
            self.init_training_settings()

    # ---------------------------------------------------------------------------------------------- building

    def _build_network(self, label: str) -> nn.Module:
        """Builds ``network_<label>`` and loads ``path.pretrain_network_<label>``."""
        key, path = f'network_{label}', self.opt['path']
        net = build(self.opt[key], key)
        net.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]  # not in torch's overloads
        if path.get(f'pretrain_{key}') is not None:
            strict, param_key = path.get(f'strict_load_{label}', True), path.get(f'param_key_{label}', 'params')
            self.load_network(net, path[f'pretrain_{key}'], strict, param_key)
        return net

    def init_training_settings(self) -> None:
        train_opt = self.opt['train']
        resuming = bool(self.opt['path'].get('resume_state'))
        batch = {name: image.to(self.device) for name, image in noise_batch(self.opt, 1).items()}
        links_opt = train_opt.get('distill_opt') or {}

        self.degradation = None
        if train_opt.get('degradation'):
            seed = self.opt.get('manual_seed') or 0
            self.degradation = build_degradation(train_opt['degradation'], scale=self.opt['scale'], seed=seed)

        self.teacher = None
        if self.label == 'g' and self.opt.get('network_t'):
            self.teacher = self._build_network('t').eval().requires_grad_(False)
        elif links_opt or train_opt.get('weight_transfer'):
            raise OptionsError(
                'train.distill_opt and train.weight_transfer need a network_g to train and a network_t to learn from.'
            )
        if train_opt.get('weight_transfer') and not resuming:
            assert self.teacher is not None
            copied = transfer_weights(train_opt['weight_transfer'], self.teacher, self.net, 'train.weight_transfer')
            get_root_logger().info(f'Weight transfer: {len(copied)} tensors of network_t into network_g.')

        self.cri_pix = self._criterion('pixel_opt')
        self.cri_imitation = self._criterion('imitation_opt')
        with vgg_weights_told('train.perceptual_opt') if train_opt.get('perceptual_opt') else nullcontext():
            self.cri_perceptual = self._criterion('perceptual_opt')
        inputs = self._inputs(self.net, batch)
        dry_run.check_network(self.net, inputs, batch, self.opt, f'network_{self.label}', bool(self.cri_imitation))
        if train_opt.get('ema_decay'):  # before hooks are attached to the network, which would be copied
            self.ema = WeightAverage(self.net, train_opt['ema_decay'])

        self.links = []
        if links_opt:
            assert self.teacher is not None
            self.links = build_links(
                links_opt,
                self.net,
                self.teacher,
                inputs,
                self._inputs(self.teacher, batch),
                lambda option_path, option: build(option, option_path),
                lambda option_path, option: build(option, option_path, build_loss),
                'train.distill_opt',
            )
        self._build_discriminator(batch)
        if not (self.cri_pix or self.links or self.cri_perceptual or self.net_d):
            raise OptionsError(
                'train has neither pixel_opt nor distill_opt, perceptual_opt or gan_opt: there is nothing to minimise.'
            )

        linked = LinkedNetwork(self.net, self.links)
        linked.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        if self.device.type == 'cpu' or self.step_options.compile is None:
            use_fast_prelu(linked, self.device, get_root_logger().warning)
        with torch.no_grad():
            linked.eval()(*inputs)  # tap readers note now which features need a copy
        self.estimators = linked.estimators
        self.linked = self.model_to_device(linked.train())
        if self.ema:  # only now do all ranks have the same weights
            self.ema.start()
            if resuming:
                self.load_network(self.ema.net, self.opt['path'][f'pretrain_network_{self.label}'], True, 'params_ema')
        self.setup_optimizers()
        self.setup_schedulers()
        self._setup_step(batch)

    def _build_discriminator(self, batch: dict[str, Tensor]) -> None:
        """Builds ``network_d`` and its loss, and checks on one patch that they fit; sets both to None without them."""
        self.net_d = self.cri_gan = None
        train_opt = self.opt['train']
        needed = {'network_d': self.opt.get('network_d')}
        needed |= {f'train.{key}': train_opt.get(key) for key in ('gan_opt', 'optim_d')}
        missing = [option_path for option_path, option in needed.items() if not option]
        if missing and len(missing) < len(needed):
            raise OptionsError(f'{" and ".join(missing)}: missing. A GAN needs {", ".join(needed)} together.')
        if missing:
            return
        self.cri_gan = self._criterion('gan_opt')
        assert self.cri_gan is not None
        net = self._build_network('d')
        self.print_network(net)
        dry_run.check_discriminator(net.eval(), self.cri_gan, batch['gt'])
        self.net_d = self.model_to_device(net.train())

    def _setup_step(self, batch: dict[str, Tensor]) -> None:
        """Puts together the step that :meth:`optimize_parameters` makes."""
        options, warn = self.step_options, get_root_logger().warning
        size = self.opt['datasets']['train'].get('batch_size_per_gpu', options.accumulate)
        if size % options.accumulate:
            raise OptionsError(
                f'train.accumulate: {options.accumulate} does not divide datasets.train.batch_size_per_gpu, {size}.'
            )
        autocast = DTYPES.get(options.amp)
        training_losses = TrainingLosses(
            self.linked,
            self.links,
            required_inputs(self.net),
            self.cri_pix,
            self.cri_imitation,
            autocast,
            self.cri_perceptual,
            return_sr=bool(self.net_d),
        )
        self.optimizer_steps = [
            OptimizerStep(optimizer, options.grad_clip, options.on_nan == 'skip', options.amp == 'fp16')
            for optimizer in self.optimizers
        ]
        self.gan_step = None
        if self.net_d and self.cri_gan:  # neither comes without the other
            iters, init_iters = (self.opt['train'].get(*key) for key in (('net_d_iters', 1), ('net_d_init_iters', 0)))
            self.gan_step = GANStep(self.net_d, self.cri_gan, self.optimizer_steps[1], iters, init_iters, autocast)
        self.training_step = TrainingStep(
            training_losses,
            self._teacher_features(batch) if self.links else None,
            self.optimizer_steps[0],
            options,
            self.gan_step,
            self.ema.update if self.ema else None,
            warn,
        )
        self.step: TrainingStep | CUDAGraphStep = self.training_step
        reason = self._no_graph()
        if reason is None and not self.optimizer_g.defaults.get('capturable'):
            reason = f'train.optim_g.type {type(self.optimizer_g).__name__} cannot be recorded'
        if reason is None:
            self.step = CUDAGraphStep(self.training_step, warn)
        elif options.cuda_graph:
            warn(f'train.cuda_graph: {reason}; steps are launched one by one.')

    def _teacher_features(self, batch: dict[str, Tensor]) -> TeacherFeatures:
        """Builds what computes the teacher's features, and checks on one patch that the teacher runs."""
        assert self.teacher is not None
        options = self.step_options
        taps = [link.teacher for link in self.links]
        dtypes = DTYPES.get(options.amp_teacher), DTYPES.get(options.amp)
        features = TeacherFeatures(self.teacher, taps, required_inputs(self.teacher), *dtypes)
        dry_run.check_teacher(features, batch, options)
        return features

    def _no_graph(self) -> str | None:
        """Returns why a step is not recorded as a CUDA graph, whatever its optimizer, or None."""
        if self.step_options.cuda_graph is False:
            return 'is off'
        if self.device.type != 'cuda':
            return 'needs a CUDA device'
        if self.opt['dist'] and not self.step_options.cuda_graph:
            return 'is for one process by default'
        if self.opt['dist'] and 'nccl' not in torch.distributed.distributed_c10d.get_backend_config():
            return 'needs NCCL to record what ranks exchange'
        if self.opt.get('network_d'):
            return 'does not record the step of a discriminator'
        if self.step_options.cuda_graph is None:
            # Code of others may choose by iteration or at random in Python. A record would repeat one choice for ever.
            losses = self.cri_pix, self.cri_imitation, self.cri_perceptual, *(link.loss for link in self.links)
            modules = [module for part in (self.linked, self.teacher, *losses) if part for module in part.modules()]
            foreign = {type(module).__module__.partition('.')[0] for module in modules} - _RECORDABLE
            if foreign:
                return f'is left out by default for code of {", ".join(sorted(foreign))}'
        return None

    def _criterion(self, key: str) -> nn.Module | None:
        option = self.opt['train'].get(key)
        return build(option, f'train.{key}', build_loss).to(self.device) if option else None

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Wraps a trained module for distributed runs, on CPU (gloo) or GPU (NCCL)."""
        net = net.to(self.device)
        if not self.opt['dist']:
            return net
        on_gpu, recorded = self.device.type == 'cuda', self._no_graph() is None
        if recorded:
            torch.cuda.synchronize()
        # A CUDA graph cannot record what is bound to the default stream.
        with torch.cuda.stream(side_stream()) if recorded else nullcontext():
            wrapped = DistributedDataParallel(
                net,
                device_ids=[torch.cuda.current_device()] if on_gpu else None,
                find_unused_parameters=self.opt.get('find_unused_parameters', False),
                gradient_as_bucket_view=True,  # gradients are not copied before they are exchanged
            )
        if recorded:
            torch.cuda.synchronize()
        return wrapped

    def setup_optimizers(self) -> None:
        self.optimizer_g = self._optimizer('optim_g', self.linked)
        self.optimizers.append(self.optimizer_g)
        if self.net_d:
            self.optimizer_d = self._optimizer('optim_d', self.net_d)
            self.optimizers.append(self.optimizer_d)

    def _optimizer(self, key: str, net: nn.Module) -> torch.optim.Optimizer:
        options = dict(self.opt['train'][key])
        params = [p for p in net.parameters() if p.requires_grad]
        return self.get_optimizer(options.pop('type'), params, **options, option_path=f'train.{key}')

    def get_optimizer(
        self, optim_type: str, params: list, lr: float, option_path: str = 'train.optim_g', **kwargs
    ) -> torch.optim.Optimizer:
        """Builds an optimizer by name (the released BasicSR knows Adam alone)."""
        return build_optimizer(optim_type, params, option_path, self._no_graph() is None, lr=lr, **kwargs)

    # ---------------------------------------------------------------------------------------------- the step

    def _inputs(self, net: nn.Module, batch: dict[str, Tensor]) -> list[Tensor]:
        return [batch[name] for name in required_inputs(net)]

    @property
    def gathers(self) -> bool:
        """Whether the step itself can gather the pixels of its batch: it is recorded, and nothing comes before it."""
        return isinstance(self.step, CUDAGraphStep) and not self.degradation

    def gather_with(self, gather: Callable[[Tensor], dict[str, Tensor]]) -> None:
        """Lets the step make its batches, so that only their indices are copied in every iteration.

        Args:
            gather: From indices on the device to ``lq`` and ``gt``. :meth:`feed_data` then takes ``indices``.
        """
        self.training_step.gather = lambda indices: {
            name: self._to_device(images) for name, images in gather(indices).items()
        }

    def feed_data(self, data: dict) -> None:
        self.batch = {key: self._to_device(value) for key, value in data.items() if isinstance(value, Tensor)}
        if 'lq' in self.batch:  # otherwise train.degradation computes it
            self.lq = self.batch['lq']
        if 'gt' in self.batch:
            self.gt = self.batch['gt']

    def _to_device(self, value: Tensor) -> Tensor:
        memory_format = self.memory_format if value.ndim == 4 else torch.preserve_format
        return value.to(self.device, non_blocking=True, memory_format=memory_format)

    def optimize_parameters(self, current_iter: int) -> None:
        if self.degradation:
            made = self.degradation(self.batch, current_iter)
            self.batch = {key: self._to_device(value) for key, value in made.items()}
            self.lq, self.gt = self.batch['lq'], self.batch['gt']
        elif 'lq' not in self.batch and not self.training_step.gather:
            raise OptionsError(
                f'datasets.train: {self.opt["datasets"]["train"].get("type")} gives no lq (found '
                f'{", ".join(self.batch)}). Expected train.degradation, which computes it.'
            )
        active = [link.active(current_iter) for link in self.links]
        if self.gan_step:
            self.losses = self.training_step(self.batch, active, self.gan_step.updates_generator(current_iter))
        else:
            self.losses = self.step(self.batch, active)

    @property
    def nonfinite(self) -> Tensor:
        """Number of losses or gradients that were not finite, see :class:`~pisr_plugin.models.optim.OptimizerStep`."""
        return functools.reduce(torch.add, [step.nonfinite for step in self.optimizer_steps])

    def get_current_log(self) -> OrderedDict:
        """Reads the losses back from the device. It is called when printing, not in every step."""
        log = self.reduce_loss_dict(self.losses)
        if self.step_options.on_nan == 'skip':
            log['skipped'] = float(self.nonfinite)
        return log

    # ---------------------------------------------------------------------------------------------- testing

    def shipped(self, channels: int = 3) -> ModelDescriptor:
        """Returns the network that is shipped: the averaged one, where weights are averaged.

        Args:
            channels: Channels of its input where its options do not name them.
        """
        net, options = self.ema.net if self.ema else self.net, self.opt[f'network_{self.label}']
        return ModelDescriptor.of(f'net_{self.label}', net, options, self.opt['scale'], self.device, channels)

    @torch.no_grad()
    def test(self) -> None:
        model = self.shipped()
        assert model.net is not None
        with evaluating(model.net):
            self.output = reconstruct(model, self._inputs(model.net, self.batch))

    def dist_validation(self, dataloader, current_iter, tb_logger, save_img) -> None:
        self.nondist_validation(dataloader, current_iter, tb_logger, save_img)

    def nondist_validation(self, dataloader, current_iter, tb_logger, save_img) -> None:
        """Validates on one set. ``metric_results`` then holds the means; None when ``stop_asked`` ended it early."""
        data_opt = dataloader.dataset.opt
        dataset = data_opt['name']
        self.metric_results = validate(
            self.shipped(1 if data_opt.get('color') == 'y' else 3),
            self.opt,
            data_opt,
            (lambda name: self._image_file(dataset, name, current_iter)) if save_img else None,
            lambda: self.stop_asked(),
        )
        if self.metric_results:
            self._initialize_best_metric_results(dataset)
            for metric, value in self.metric_results.items():
                self._update_best_metric_result(dataset, metric, value, current_iter)
            self._log_validation_metric_values(current_iter, dataset, tb_logger)

    def _image_file(self, dataset: str, name: str, current_iter: int) -> Path:
        if self.is_train:
            return Path(self._file('visualization', os.path.join(name, f'{name}_{current_iter}.png')))
        suffix = self.opt['val'].get('suffix') or self.opt['name']
        return Path(self._file('visualization', os.path.join(dataset, f'{name}_{suffix}.png')))

    # ---------------------------------------------------------------------------------------------- files

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True, param_key: str = 'params') -> None:
        skipped = checkpoint.load_network(self.get_bare_model(net), load_path, param_key, strict)
        logger = get_root_logger()
        logger.info(f'Loading {type(net).__name__} model from {load_path}, with param key: [{param_key}].')
        if skipped:
            logger.warning(f'{len(skipped)} tensors keep their initial values, e.g. {skipped[0]}.')

    def save(self, epoch: int, current_iter: int) -> None:
        """Saves all networks, and the training state unless ``current_iter`` is -1, the end of the training."""
        nets = {'params': self.net}
        if self.ema:
            nets['params_ema'] = self.ema.net
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
        when = 'latest' if current_iter == -1 else current_iter
        checkpoint.save_atomic(content, self._file('models', f'{net_label}_{when}.pth'))

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """Saves what a resumed run needs beside the networks. It is written last, when the networks are complete."""
        state = training_state.collect(self, epoch, current_iter)
        if state is not None:
            checkpoint.save_atomic(state, self._file('training_states', f'{current_iter}.state'))

    def network_names(self) -> list[str]:
        """Returns the names of the checkpoints that belong to a training state."""
        return [f'net_{self.label}', *(['net_e'] if len(self.estimators) else []), *(['net_d'] if self.net_d else [])]

    def resume_training(self, resume_state: dict) -> None:
        """Continues from a training state; the networks were loaded when the model was built.

        Args:
            resume_state: What a ``.state`` file holds.

        Raises:
            CheckpointError: it is damaged, lacks something, or is that of another optimizer.
        """
        current_iter = resume_state.get('iter') if isinstance(resume_state, dict) else None
        training_state.restore(self, resume_state, self._file('training_states', f'{current_iter}.state'))
        if len(self.estimators):
            path = self._file('models', f'net_e_{current_iter}.pth')
            if not os.path.isfile(path):
                raise CheckpointError(f'{path} is missing. The estimators cannot be resumed without it.')
            self.load_network(self.estimators, path)

    def _file(self, folder: str, name: str) -> str:
        return os.path.join(self.opt['path'][folder], name)
