"""The main job: one recipe trains a teacher, then its student; nothing is lost and mistakes are told."""

import importlib.util
import json
import os
import signal
from pathlib import Path

import pytest
import torch
import yaml
from basicsr.archs import build_network

from pisr_plugin.cli.train import main as train
from pisr_plugin.cli.upscale import main as upscale
from pisr_plugin.inference import checkpoint
from pisr_plugin.utils.errors import OptionsError
from tests.conftest import ROOT
from tests.processes import start, wait_for_progress

STILL = ['stages:student:train:optim_g:lr=0', 'train:scheduler:eta_min=0']  # a student that keeps its initial weights
TEACHER, STUDENT = Path('experiments/run/teacher'), Path('experiments/run/student')


def records(folder):
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def test_one_recipe_trains_teacher_then_student(workspace):
    assert train(['-opt', str(workspace.recipe())]) == 0
    losses = {
        stage: {key for record in records(folder) for key in record if key.startswith('l_')}
        for stage, folder in (('teacher', TEACHER), ('student', STUDENT))
    }
    assert losses == {'teacher': {'l_pix', 'l_imitation'}, 'student': {'l_pix', 'l_distill_body'}}
    for folder in (TEACHER, STUDENT):
        assert [r['iter'] for r in records(folder) if r.get('dataset') == 'test'] == [2, 4]
        assert set(json.loads((folder / 'result.json').read_text())['metrics']['test']) == {'psnr', 'ssim'}
    assert sorted(p.name for p in (STUDENT / 'models').glob('*.pth')) == [
        f'net_{label}_{when}.pth' for label in 'eg' for when in (2, 4, 'latest')
    ]
    assert {p.name for p in (TEACHER / 'models').glob('*.pth')} == {'net_t_2.pth', 'net_t_4.pth', 'net_t_latest.pth'}


def test_the_students_checkpoint_is_the_plain_network(workspace):
    assert train(['-opt', str(workspace.recipe())]) == 0
    options = yaml.safe_load((STUDENT / 'options.yml').read_text())
    content = torch.load(STUDENT / 'models/net_g_latest.pth', weights_only=True)
    assert list(content) == ['params']
    build_network(options['network_g']).load_state_dict(content['params'], strict=True)


def test_the_students_start_is_the_teachers_decoder(workspace):
    assert train(['-opt', str(workspace.recipe()), '--force_yml', *STILL]) == 0
    teacher = checkpoint.load_weights(TEACHER / 'models/net_t_latest.pth')
    student = checkpoint.load_weights(STUDENT / 'models/net_g_latest.pth')
    assert len(student) == 14
    assert all(torch.equal(value, teacher[f'decoder.{key}']) for key, value in student.items())


def test_a_finished_stage_is_not_run_again(workspace, capsys):
    recipe = str(workspace.recipe())
    assert train(['-opt', recipe]) == 0
    before = {p: p.stat().st_mtime_ns for p in Path('experiments').rglob('*') if p.is_file()}
    assert train(['-opt', recipe]) == 0
    assert train(['-opt', recipe, '--force_yml', 'logger:print_freq=3']) == 0
    assert 'is finished' in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in Path('experiments').rglob('*') if p.is_file()}


def test_without_val_the_test_sets_are_left_alone(workspace):
    assert train(['-opt', str(workspace.recipe(val=None))]) == 0
    result = json.loads(Path('experiments/run/student/result.json').read_text())
    assert result['iter'] == 4 and not result['metrics']


def test_a_run_without_validation_finishes_too(workspace, capsys):
    recipe = ['-opt', str(workspace.recipe('baseline')), '--force_yml', 'datasets:val=~', 'val=~']
    assert train(recipe) == train(recipe) == 0
    assert 'is finished' in capsys.readouterr().out


def test_a_finished_stage_with_other_options_is_not_touched(workspace, capsys):
    recipe = str(workspace.recipe())
    assert train(['-opt', recipe]) == 0
    assert train(['-opt', recipe, '--force_yml', 'train:total_iter=6']) == 2
    error = capsys.readouterr().err
    assert 'train.total_iter: 4 then, 6 now' in error and 'name=' in error


def test_student_alone_uses_the_teacher_found_or_named(workspace, capsys):
    recipe = str(workspace.recipe())
    assert train(['-opt', recipe, '--stage', 'student']) == 2
    assert 'path.pretrain_network_t' in capsys.readouterr().err and not Path('experiments').exists()
    assert train(['-opt', recipe, '--stage', 'teacher']) == 0
    assert not STUDENT.exists()
    teacher = TEACHER / 'models/net_t_2.pth'
    assert (
        train(['-opt', recipe, '--stage', 'student', '--force_yml', 'name=named', f'path:pretrain_network_t={teacher}'])
        == 0
    )
    assert train(['-opt', recipe, '--stage', 'student']) == 0
    assert yaml.safe_load(Path('experiments/named/student/options.yml').read_text())['path'][
        'pretrain_network_t'
    ] == str(teacher)


def test_an_unfinished_run_resumes_or_is_moved_away(workspace, capsys):
    recipe = str(workspace.recipe('baseline'))
    assert train(['-opt', recipe]) == 0
    for path in (STUDENT / 'result.json', STUDENT / 'models/net_g_latest.pth', STUDENT / 'training_states/4.state'):
        path.unlink()
    assert train(['-opt', recipe, '--auto_resume']) == 0
    assert [r['iter'] for r in records(STUDENT) if 'l_pix' in r] == [1, 2, 3, 4]
    (STUDENT / 'result.json').unlink()
    assert train(['-opt', recipe]) == 0
    (archived,) = Path('experiments/run').glob('student_archived_*')
    assert (archived / 'models/net_g_4.pth').exists() and 'was moved to' in capsys.readouterr().err


def test_resuming_skips_a_damaged_state_and_restores_optimiser_ema_and_estimators(workspace, capsys):
    recipe = str(workspace.recipe(train={'total_iter': 4, 'ema_decay': 0.5}))
    assert train(['-opt', recipe]) == 0
    (STUDENT / 'result.json').unlink()
    (STUDENT / 'training_states/4.state').write_bytes(b'PK damaged')
    estimators = checkpoint.load_weights(STUDENT / 'models/net_e_2.pth')
    assert train(['-opt', recipe, '--auto_resume', '--force_yml', 'stages:student:train:total_iter=2']) == 0
    assert 'Skipped' in capsys.readouterr().err
    assert all(
        torch.equal(value, estimators[key])
        for key, value in checkpoint.load_weights(STUDENT / 'models/net_e_latest.pth').items()
    )
    for key in ('params', 'params_ema'):
        expected = torch.load(STUDENT / 'models/net_g_2.pth', weights_only=True)[key]
        found = torch.load(STUDENT / 'models/net_g_latest.pth', weights_only=True)[key]
        assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_a_teacher_with_ema_hands_over_its_average(workspace):
    recipe = workspace.recipe(train={'total_iter': 4, 'ema_decay': 0.5})
    assert train(['-opt', str(recipe), '--force_yml', *STILL]) == 0
    teacher = torch.load(TEACHER / 'models/net_t_latest.pth', weights_only=True)
    student = torch.load(STUDENT / 'models/net_g_latest.pth', weights_only=True)['params']
    key = 'expanding.0.0.weight'
    assert torch.equal(student[key], teacher['params_ema'][f'decoder.{key}'])
    assert not torch.equal(student[key], teacher['params'][f'decoder.{key}'])


@pytest.mark.parametrize(
    'network, tap',
    [
        (
            {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 2, 'upscale': '${scale}'},
            'conv_after_body',
        ),
        ({'type': 'MSRResNet', 'num_feat': 8, 'num_block': 2, 'upscale': '${scale}'}, 'body.1'),
    ],
)
def test_any_network_of_basicsr_is_a_student(workspace, network, tap):
    recipe = workspace.recipe(network_g=network)
    links = [
        f'train:distill_opt:body:student={tap}',
        'datasets:train:color=rgb',
        'datasets:val:color=rgb',
        'train:distill_opt:first={student: conv_first, estimator: {type: Adapter}, '
        'loss: {type: FeatureMAELoss, loss_weight: 0.1}}',
    ]
    assert train(['-opt', str(recipe), '--force_yml', *links]) == 0
    assert {'l_distill_body', 'l_distill_first'} <= set(records(STUDENT)[0])


MISTAKES = {
    'unknown key': (['train:totl_iter=3'], ['train.totl_iter: unknown key', "'total_iter'"]),
    'unknown dataset key': (['datasets:train:gtsize=3'], ['datasets.train.gtsize: unknown key', "'gt_size'"]),
    'wrong network': (['network_g:type=FSRCN'], ['type', "'FSRCN' is not registered", "'FSRCNN'"]),
    'wrong loss': (
        ['train:distill_opt:body:loss:type=VIDLaplas'],
        ['train.distill_opt.body.loss.type', "'VIDLaplaceLoss'"],
    ),
    'wrong argument': (['network_g:num_feet=3'], ['num_feet', 'FSRCNN has no such argument', 'upscale']),
    'refused argument': (['network_g:upscale=1'], ['network_t', 'upscale', 'found 1']),
    'wrong tap': (
        ['train:distill_opt:body:student=expandng'],
        ['train.distill_opt.body.student', "'expanding'", 'last_layer'],
    ),
    'taps that do not fit': (
        ['train:distill_opt:body:student=last_layer', 'train:distill_opt:body:teacher=decoder.expanding'],
        ['train.distill_opt.body', 'differ in size', '(1, 1, 32, 32)', '(1, 8, 16, 16)'],
    ),
    'widths that do not fit': (
        ['train:distill_opt:body={student: expanding, teacher: decoder.mapping, loss: {type: FeatureMAELoss}}'],
        ['FeatureMAELoss', '(1, 8, 16, 16)', '(1, 4, 16, 16)'],
    ),
    'text for number': (['train:optim_g:lr=fast'], ['train.optim_g.lr', "(found 'fast'). Expected a number"]),
    'text for whole number': (['train:total_iter=1.5'], ['train.total_iter', '(found 1.5). Expected a whole number']),
    'missing data': (
        ['datasets:train:dataroot_gt=datasets/nowhere'],
        ['datasets.train', 'datasets/nowhere', 'pisr-prepare-data'],
    ),
    'wrong scale': (
        ['scale=3', 'datasets:train:dataroot_lq=datasets/train/LR_bicubic/X2'],
        ['datasets.train', 'scale'],
    ),
    'network of another scale': (
        [
            'network_g:upscale=4',
            'stages={student: {}}',
            'network_t=~',
            'train:imitation_opt=~',
            'train:weight_transfer=~',
            'train:distill_opt=~',
        ],
        ['network_g', '(1, 1, 64, 64)', 'scale 2', '(1, 1, 32, 32)'],
    ),
    'wrong colour': (['datasets:train:color=rgb'], ['network_t', '(1, 3, 32, 32)', 'color']),
    'missing checkpoint': (['path:pretrain_network_t=nowhere.pth'], ['nowhere.pth', 'does not exist']),
    'unknown optimiser': (['train:optim_g:type=Adm'], ["unknown 'Adm'", "'Adam'"]),
    'short schedule': (
        ['train:scheduler:periods=[2]'],
        ['train.scheduler.periods', '[2] end before train.total_iter, 4'],
    ),
    'no gpu': (['num_gpu=99'], ['num_gpu: 99']),
    'unknown stage reference': (['path:pretrain_network_t=stage:x'], ['names no earlier stage']),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_is_one_message_and_nothing_is_written(workspace, capsys, mistake):
    overrides, fragments = MISTAKES[mistake]
    assert train(['-opt', str(workspace.recipe()), '--force_yml', *overrides]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and 'Traceback' not in error
    assert all(fragment in error for fragment in fragments), error
    assert not Path('experiments').exists()


def test_checkpoints_that_are_not_this_teachers(workspace, capsys, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'made'),)

    torch.save({'params': Evil()}, 'evil.pth')
    torch.save({'params': {'body.weight': torch.zeros(2)}}, 'other.pth')
    Path('cut.pth').write_bytes(Path('other.pth').read_bytes()[:200])
    recipe = str(workspace.recipe())
    for file, fragments in (
        ('evil.pth', ['evil.pth is refused']),
        ('cut.pth', ['cut.pth', 'damaged']),
        ('other.pth', ['belongs to another network than PITeacher', 'body.weight']),
    ):
        assert train(['-opt', recipe, '--stage', 'student', '--force_yml', f'path:pretrain_network_t={file}']) == 2
        error = capsys.readouterr().err
        assert all(fragment in error for fragment in fragments), error
    assert not (tmp_path / 'made').exists() and not Path('experiments').exists()


def test_a_run_folder_that_cannot_be_written(workspace, capsys):
    Path('experiments').write_text('in the way')
    assert train(['-opt', str(workspace.recipe())]) == 2
    assert 'experiments' in capsys.readouterr().err


@pytest.mark.parametrize('workers', [0, 1])
def test_ctrl_c_leaves_a_checkpoint_that_resumes(workspace, workers):
    recipe = workspace.recipe('baseline', train={'total_iter': 100000})
    command = [
        ROOT / 'tools/train.py',
        '-opt',
        recipe,
        '--force_yml',
        'logger:save_checkpoint_freq=100000',
        f'datasets:train:num_worker_per_gpu={workers}',
    ]
    process = start(*command, cwd=workspace.path)
    wait_for_progress([process], STUDENT)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output
    assert 'Traceback' not in output and '--auto_resume' in output
    (state,) = (STUDENT / 'training_states').glob('*.state')
    reached = int(state.stem)
    assert train(['-opt', str(recipe), '--auto_resume', '--force_yml', f'train:total_iter={reached + 2}']) == 0
    assert records(STUDENT)[-2]['iter'] == reached + 2


def test_the_resolved_options_run_under_stock_basicsr(workspace):
    """A BasicSR user's own script trains the student stage and tests its checkpoint to the same figure."""
    assert train(['-opt', str(workspace.recipe())]) == 0
    from pisr_plugin.cli.test import main as test

    assert test(['-opt', str(workspace.recipe())]) == 0
    rows = json.loads(Path('results/run/evaluation.json').read_text())['rows']
    ours = {row['name']: row['sets']['test']['mean']['psnr'] for row in rows}

    script = workspace.path / 'stock.py'
    script.write_text(
        'import sys, pisr_plugin\nfrom basicsr.train import train_pipeline\nfrom basicsr.test import test_pipeline\n'
        'pipeline = {"train": train_pipeline, "test": test_pipeline}[sys.argv.pop(1)]\npipeline(".")\n'
    )
    training = start(script, 'train', '-opt', STUDENT / 'options.yml', cwd=workspace.path)
    output, _ = training.communicate(timeout=300)
    assert training.returncode == 0, output
    stock = checkpoint.load_weights('experiments/run_student/models/net_g_latest.pth')
    assert stock.keys() == checkpoint.load_weights(STUDENT / 'models/net_g_latest.pth').keys()

    options = Path('results/run/student/options.yml').rename('student_test.yml')
    testing = start(script, 'test', '-opt', options, cwd=workspace.path)
    output, _ = testing.communicate(timeout=300)
    assert testing.returncode == 0, output
    figure = float(output.split('# psnr: ')[1].split()[0])
    assert figure == pytest.approx(ours['student'], abs=1e-3)


def test_stock_basicsr_resumes_a_stage_on_a_cpu(workspace):
    assert train(['-opt', str(workspace.recipe())]) == 0
    script = workspace.path / 'stock.py'
    script.write_text('import pisr_plugin\nfrom basicsr.train import train_pipeline\ntrain_pipeline(".")\n')
    command = [script, '-opt', STUDENT / 'options.yml', '--auto_resume']
    for total, started in ((4, 'Start training from epoch: 0, iter: 0'), (6, 'Start training from epoch: 0, iter: 4')):
        process = start(
            *command, '--force_yml', f'train:total_iter={total}', 'train:scheduler:periods=[6]', cwd=workspace.path
        )
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0 and started in output, output


@pytest.mark.parametrize('package', ['tensorboard', 'wandb'])
def test_a_missing_logger_is_found_before_training(workspace, capsys, monkeypatch, package):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == package else found(name))
    wanted = ['logger:use_tb_logger=true', *(['logger:wandb:project=x'] if package == 'wandb' else [])]
    assert train(['-opt', str(workspace.recipe()), '--force_yml', *wanted]) == 2
    assert f'pip install {package}' in capsys.readouterr().err and not Path('experiments').exists()


@pytest.mark.parametrize('verbose', [False, True])
def test_the_terminal_shows_a_summary_the_log_everything(workspace, capfd, verbose):
    assert train(['-opt', str(workspace.recipe('baseline')), *(['--verbose'] if verbose else [])]) == 0
    out, terminal = capfd.readouterr()
    (log,) = STUDENT.glob('train_*.log')
    for everything in ('dataset_enlarge_ratio: 5', '(expanding): '):
        assert everything in log.read_text() and (everything in terminal) == verbose
    for line in ('network_g FSRCNN, x2', 'Saving models and training states.', 'End of training. Time consumed: 0:00'):
        assert line in terminal and line in log.read_text()
    assert verbose or terminal[: terminal.index('Start training')].count('\n') <= 20
    assert str((STUDENT / 'models/net_g_latest.pth').absolute()) in out and 'test psnr' in out
    assert out.splitlines()[-2:] == [
        f'Next: pisr-test -opt {workspace.path / "run.yml"}',
        '      pisr-upscale PHOTO --model experiments/run/student',
    ]
    photo = str(workspace.path / 'datasets/test/LR_bicubic/X2/0.png')
    assert upscale([photo, '--model', 'experiments/run/student', '-o', 'larger']) == 0


@pytest.mark.parametrize('pipeline', ['train', 'test'])
def test_stock_basicsr_refuses_a_recipe_before_it_touches_a_run(workspace, monkeypatch, pipeline):
    recipe = str(workspace.recipe())
    Path('experiments/run').mkdir(parents=True)
    monkeypatch.setattr('sys.argv', ['train.py', '-opt', recipe])
    module = importlib.import_module(f'basicsr.{pipeline}')
    with pytest.raises(OptionsError, match='this is a recipe of pisr_plugin .found _base_.. .*pisr-train -opt'):
        getattr(module, f'{pipeline}_pipeline')('.')
    assert [path.name for path in Path('experiments').iterdir()] == ['run']


def test_tensorboard_gets_every_loss(workspace):
    assert train(['-opt', str(workspace.recipe('baseline')), '--force_yml', 'logger:use_tb_logger=true']) == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(STUDENT / 'tb_logger'))
    events.Reload()
    assert {'losses/l_pix', 'metrics/test/psnr'} <= set(events.Tags()['scalars'])
