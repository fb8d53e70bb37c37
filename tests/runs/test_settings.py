"""Settings by their path."""

from vr1.runs import differing, flat_settings


def test_names_are_those_of_the_command_line():
    config = {
        "trainer": {"callbacks": [{"class_path": "a.Gallery", "init_args": {"num_images": 4}}, {"class_path": "b.C"}]},
        "model": {"class_path": "m.M", "init_args": {"loss": {"class_path": "l.L", "init_args": {"kl_coef": 0.1}}}},
        "data": {"sizes": [1, 2]},
        "ckpt_path": None,
    }
    assert flat_settings(config) == {
        "trainer.callbacks.Gallery": "a.Gallery",
        "trainer.callbacks.Gallery.num_images": 4,
        "trainer.callbacks.C": "b.C",
        "model": "m.M",
        "model.loss": "l.L",
        "model.loss.kl_coef": 0.1,
        "data.sizes": [1, 2],
        "ckpt_path": None,
    }


def test_two_objects_of_one_class():
    stack = {"loggers": [{"class_path": "a.L", "init_args": {"x": 1}}, {"class_path": "b.L", "init_args": {"x": 2}}]}
    assert flat_settings(stack) == {"loggers.L": "a.L", "loggers.L.x": 1, "loggers.L.1": "b.L", "loggers.L.1.x": 2}


def test_where_a_run_writes_is_no_difference():
    one = {"trainer.default_root_dir": "a", "model.lr": 0.1}
    assert differing([one, {"trainer.default_root_dir": "b", "model.lr": 0.1}]) == {}
    assert differing([one, {"model.kl": 0.2, "model.lr": 0.1}]) == {"model.kl": [None, 0.2]}
