"""Rule refinement when stages begin, what resume restores, what two processes decide."""

from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from callbacks import Plateau, RuleRefinement, Stage
from tests.callbacks.tiny import TinyDetector
from tests.processes import two_ranks
from tests.trainers import trainer
from vr1.errors import UserError
from vr1.rewards import STAGES, Criterion, Reward

EASY, HARD, HARDER = Criterion(0.5, 0.5, 0.75), Criterion(0.75, 0.75, 0.9), Criterion(0.9, 0.9, 0.95)
RISING = [0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]


def two(**beginning):
    return [Stage(name="easy", criterion=EASY), Stage(name="hard", criterion=HARD, **beginning)]


def fit(tmp_path, stages, model=None, *, ckpt_path=None, callbacks=(), **settings):
    model = model or TinyDetector(RISING)
    refinement = RuleRefinement(stages)
    run = trainer(tmp_path, [refinement, *callbacks], **({"max_steps": 10} | settings))
    run.fit(model, ckpt_path=ckpt_path)
    return model, refinement, run


def switch_step(model, xi0=0.75):
    return next((step for step, seen in model.seen if seen == xi0), None)


def test_default_is_the_papers_schedule(tmp_path):
    model, refinement, run = fit(tmp_path, None)
    assert [seen for _, seen in model.seen] == [0.5] * 5 + [0.75] * 5
    assert refinement.stage.name == "advanced"
    assert model.reward.criterion == STAGES["advanced"]
    assert {
        name: float(run.callback_metrics[f"rule/{name}"]) for name in ("stage", "xi0", "xi1", "xi2")
    } == pytest.approx({"stage": 1.0, "xi0": 0.75, "xi1": 0.75, "xi2": 0.9})


def test_sets_the_criterion_of_the_real_reward(tmp_path):
    model = TinyDetector()
    model.reward = Reward()
    fit(tmp_path, two(at_step=2), model)
    assert switch_step(model) == 2
    assert model.reward.criterion == HARD


RELEASED = {"criterion": Criterion(0.5, 0.5, 0.75, strict=True), "stages": ["beginner", "advanced"]}


def test_the_papers_stages_are_those_that_the_reward_has(tmp_path):
    model = TinyDetector()
    model.reward = Reward(**RELEASED)
    fit(tmp_path, None, model)
    assert model.reward.criterion == Criterion(0.75, 0.75, 0.9, strict=True)
    model.reward = Reward(criterion=Criterion(0.5, 0.5, 0.75, strict=True))
    fit(tmp_path, None, model)
    assert model.reward.criterion.strict, "a reward with all stages keeps its own comparison as well"


@pytest.mark.parametrize(
    ("reward", "stages", "name"),
    [
        ({"criterion": Criterion(0.5, 0.0, 1.0, strict=True), "stages": ["off"]}, None, "beginner"),
        (RELEASED, two(at_step=2), "easy"),
        (RELEASED, [Stage(name="a", criterion=Criterion(0.5, 0.5, 0.75, strict=True)), *two(at_step=2)[1:]], "hard"),
    ],
)
def test_a_stage_that_the_reward_does_not_have_is_refused(tmp_path, reward, stages, name):
    model = TinyDetector()
    model.reward = Reward(**reward)
    with pytest.raises(UserError, match=rf"stage '{name}' has Criterion.*but reward\.stages are .*`stages: \[\]`"):
        fit(tmp_path, stages, model)
    # Switched off, it leaves the reward as it is.
    fit(tmp_path, [], model)
    assert model.reward.criterion == reward["criterion"]


@pytest.mark.parametrize(("fraction", "total", "step"), [(0.1, 30, 3), (1 / 3, 10, 4), (0.0, 10, 0), (1.0, 10, None)])
def test_fraction_of_max_steps(tmp_path, fraction, total, step):
    model, _, _ = fit(tmp_path, two(at_fraction=fraction), max_steps=total)
    assert switch_step(model) == step


@pytest.mark.parametrize(
    ("beginning", "warning"),
    [({"at_step": 10}, "at_step 10 is the end"), ({"at_fraction": 0.95}, r"at_fraction 0\.95 is")],
)
def test_a_stage_that_never_begins_is_a_warning(tmp_path, beginning, warning):
    with pytest.warns(UserWarning, match=f"stage 'hard' never begins: {warning}"):
        model, _, _ = fit(tmp_path, two(**beginning))
    assert switch_step(model) is None


def test_a_switch_at_the_end_is_no_warning(tmp_path, recwarn):
    fit(tmp_path, two(at_fraction=1.0))
    assert not [warning for warning in recwarn if "never begins" in str(warning.message)]


def test_fraction_of_epochs_counts_optimizer_steps(tmp_path):
    # 2 epochs x 10 batches, 3 batches a step: 4 steps an epoch, 8 in all.
    model, _, run = fit(tmp_path, two(at_fraction=0.5), max_steps=-1, max_epochs=2, accumulate_grad_batches=3)
    assert run.global_step == 8
    assert switch_step(model) == 4


def test_switch_waits_for_the_end_of_accumulation(tmp_path):
    model, _, _ = fit(tmp_path, two(at_step=1), max_steps=2, accumulate_grad_batches=2)
    assert model.seen == [(0, 0.5), (0, 0.5), (1, 0.75), (1, 0.75)]


def test_plateau_begins_the_stage_after_patience(tmp_path):
    plateau = Plateau(monitor="reward/total", patience=3, window=1)
    model, refinement, _ = fit(tmp_path, two(on_plateau=plateau))
    # Best at the end of step 5 (value 0.5); no gain for 3 steps after it, so step index 8 is the first hard one.
    assert switch_step(model) == 8
    assert refinement.first_steps == [0, 8]


def test_plateau_of_a_falling_metric(tmp_path):
    plateau = Plateau(monitor="reward/total", patience=2, window=1, mode="min")
    model, _, _ = fit(tmp_path, two(on_plateau=plateau), TinyDetector([3, 2, 1, 1, 1, 1, 1, 1, 1, 1]))
    assert switch_step(model) == 5


def test_a_fixed_stage_ends_the_wait_for_a_plateau(tmp_path):
    stages = [
        *two(on_plateau=Plateau(monitor="reward/total", patience=100)),
        Stage(name="last", criterion=HARDER, at_step=6),
    ]
    model, refinement, _ = fit(tmp_path, stages)
    assert switch_step(model, 0.75) is None
    assert switch_step(model, 0.9) == 6
    assert refinement.stage.name == "last"


def test_off_keeps_the_rewards_own_criterion(tmp_path):
    model, refinement, run = fit(tmp_path, [])
    assert {seen for _, seen in model.seen} == {0.1}
    assert refinement.stage is None
    assert "rule/stage" not in run.callback_metrics


class WithoutReward(TinyDetector):
    def __init__(self):
        super().__init__()
        self.reward = None

    def training_step(self, batch, batch_idx):
        return self.weight.square().sum()


def test_off_needs_no_reward(tmp_path):
    fit(tmp_path, [], WithoutReward(), max_steps=1)
    with pytest.raises(UserError, match="RuleRefinement requires a module with a reward, and WithoutReward has none"):
        fit(tmp_path, None, WithoutReward())


def test_the_untrained_model_is_evaluated_by_the_first_stage(tmp_path):
    model, _, _ = fit(tmp_path, None, num_sanity_val_steps=-1, limit_val_batches=1.0, val_check_interval=10)
    assert model.validated == [(0, 0.5), (10, 0.75)]


BEGINNINGS = [
    {"at_fraction": 0.5},
    {"at_step": 7},
    {"on_plateau": Plateau(monitor="reward/total", patience=3, window=2)},
    {"on_plateau": Plateau(monitor="reward/total", patience=1, window=2)},
]


@pytest.mark.filterwarnings("error:the checkpoint was saved in stage")
@pytest.mark.parametrize("beginning", BEGINNINGS)
@pytest.mark.parametrize("stop", range(1, 10, 2))
def test_resume_is_exact(tmp_path, beginning, stop):
    uninterrupted, expected, _ = fit(tmp_path, two(**beginning))
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=stop, save_top_k=-1)
    first = fit(tmp_path, two(**beginning), callbacks=[saving], enable_checkpointing=True)[1]
    assert first.first_steps == expected.first_steps
    path = tmp_path / f"step={stop}.ckpt"
    resumed, refinement, _ = fit(tmp_path, two(**beginning), ckpt_path=path)
    assert resumed.seen == uninterrupted.seen[stop:]
    assert refinement.state_dict() == expected.state_dict()


def test_a_longer_training_moves_the_fraction_and_says_so(tmp_path):
    saving = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=10)
    fit(tmp_path, None, callbacks=[saving], enable_checkpointing=True)
    with pytest.warns(UserWarning, match="saved in stage 'advanced'"):
        model, _, _ = fit(tmp_path, None, ckpt_path=tmp_path / "last.ckpt", max_steps=30)
    assert switch_step(model) == 15


def test_a_second_fit_of_the_same_callback_starts_over(tmp_path):
    plateau = Plateau(monitor="reward/total", patience=1, window=1)
    refinement = RuleRefinement(two(on_plateau=plateau))
    seen = []
    for _ in range(2):
        model = TinyDetector(RISING)
        trainer(tmp_path, [refinement], max_steps=10).fit(model)
        seen.append(model.seen)
    assert seen[0] == seen[1]


def test_two_processes_decide_alike(tmp_path):
    # Alone, rank 1 (always 0) would switch at step 3 and rank 0 (best at step 3) at step 5, where the mean does.
    model = TinyDetector(RISING[2:], scale_by_rank=(1.0, 0.0))
    refinement = RuleRefinement(two(on_plateau=Plateau(monitor="reward/total", patience=2, window=1)))
    run = trainer(tmp_path, [refinement, WriteSeen()], max_steps=7, **two_ranks())
    run.fit(model)
    for rank in range(2):
        assert (tmp_path / f"rank{rank}").read_text() == str([0.5] * 5 + [0.75] * 2)


class WriteSeen(Callback):
    def on_train_end(self, trainer, pl_module):
        path = Path(trainer.default_root_dir, f"rank{trainer.global_rank}")
        path.write_text(str([xi0 for _, xi0 in pl_module.seen]))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (lambda: two(at_fraction=1.5), "at_fraction is 1.5"),
        (lambda: two(at_step=-1), "at_step is -1"),
        (lambda: two(at_step=1, at_fraction=0.5), "at_fraction and at_step"),
        (lambda: two(), "'hard' never begins"),
        (lambda: [Stage(name="late", criterion=EASY, at_step=3)], "'late', begins late"),
        (
            lambda: [Stage(name="x", criterion=EASY), Stage(name="x", criterion=EASY, at_step=1)],
            "two stages are named 'x'",
        ),
        (lambda: [*two(at_step=5), Stage(name="z", criterion=HARDER, at_step=5)], r"at_step of the stages is \[5, 5\]"),
        (
            lambda: [*two(at_fraction=0.5), Stage(name="z", criterion=HARDER, at_fraction=0.25)],
            "at_fraction of the stages",
        ),
        (lambda: two(on_plateau=Plateau(monitor="x", patience=0)), "patience is 0"),
        (lambda: two(on_plateau=Plateau(monitor="x", patience=1, window=0)), "window is 0"),
        (lambda: two(on_plateau=Plateau(monitor="x", patience=1, min_delta=-1)), "min_delta is -1"),
        (lambda: two(on_plateau=Plateau(monitor="", patience=1)), "monitor is empty"),
    ],
)
def test_a_bad_schedule_is_an_error_at_once(stages, message):
    with pytest.raises(ValueError, match=message):
        RuleRefinement(stages())


def test_fractions_and_steps_out_of_order_are_refused_when_the_length_is_known(tmp_path):
    stages = [*two(at_fraction=0.5), Stage(name="last", criterion=HARDER, at_step=3)]
    with pytest.raises(ValueError, match=r"begin at steps \[0, 5, 3\] of 10"):
        fit(tmp_path, stages)


def test_fraction_of_an_endless_training_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing limits the training"):
        fit(tmp_path, None, max_steps=-1, max_epochs=-1)


def test_a_training_metric_never_logged_is_refused_after_its_patience(tmp_path):
    with pytest.raises(
        ValueError, match=r"'reward/totl', which was not logged by step 3: choose one of .*reward/total"
    ):
        fit(tmp_path, two(on_plateau=Plateau(monitor="reward/totl", patience=3)))


def test_a_validation_metric_never_logged_is_refused_before_training(tmp_path):
    stages = two(on_plateau=Plateau(monitor="val/mpa", patience=3))
    with pytest.raises(ValueError, match=r"'val/mpa', which was not logged by step 0"):
        fit(tmp_path, stages, num_sanity_val_steps=-1, limit_val_batches=1.0)
    with pytest.raises(ValueError, match="does not validate"):
        fit(tmp_path, stages)


def test_a_validation_metric_may_come_after_its_patience(tmp_path):
    plateau = Plateau(monitor="val/valid_rate", patience=2, window=1)
    model, _, _ = fit(tmp_path, two(on_plateau=plateau), limit_val_batches=1.0, val_check_interval=4)
    # First seen with step 5 (the validation after step 4), flat for 2 steps after it.
    assert switch_step(model) == 7


@pytest.mark.filterwarnings("ignore:(?s).*instantiate_classes")
def test_yaml(tmp_path):
    text = """
    class_path: callbacks.RuleRefinement
    init_args:
      stages:
        - {name: easy, criterion: {xi0: 0.5, xi1: 0.5, xi2: 0.75}}
        - {name: hard, criterion: {xi0: 0.75, xi1: 0.75, xi2: 0.9, strict: true}, at_fraction: 0.25}
        - name: hardest
          criterion: {xi0: 0.9, xi1: 0.9, xi2: 0.95}
          on_plateau: {monitor: reward/total, patience: 20, window: 5, mode: max}
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=RuleRefinement)
    callback = parser.instantiate_classes(parser.parse_object({"callback": yaml.safe_load(text)})).callback
    assert callback.stages[1] == Stage(name="hard", criterion=Criterion(0.75, 0.75, 0.9, strict=True), at_fraction=0.25)
    assert callback.stages[2].on_plateau == Plateau(monitor="reward/total", patience=20, window=5)
    off = parser.parse_object({"callback": {"class_path": "callbacks.RuleRefinement", "init_args": {"stages": []}}})
    assert parser.instantiate_classes(off).callback.stages == []


@pytest.mark.parametrize(("share", "switched"), [(0.25, 2), (0.5, 3), (1.0, None)])
def test_one_number_moves_the_last_stage(share, switched, tmp_path):
    refinement = RuleRefinement(switch_at=share)
    module = TinyDetector()
    trainer(tmp_path, [refinement], max_steps=6).fit(module)
    strict = [step for step, xi0 in module.seen if xi0 == 0.75]
    assert (strict[0] if strict else None) == switched
    # It applies at the end, and so in the validation after the last step.
    assert refinement.stage.name == ("beginner" if switched is None else "advanced")
    assert module.reward.criterion == refinement.stage.criterion
    assert refinement.first_steps == [0, switched]


@pytest.mark.parametrize(
    ("settings", "error"),
    [({"switch_at": 1.5}, "switch_at is 1.5: give a share"), ({"stages": [], "switch_at": 0.5}, "no second stage")],
)
def test_a_bad_switch(settings, error):
    with pytest.raises(ValueError, match=error):
        RuleRefinement(**settings)
