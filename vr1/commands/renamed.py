"""Names of version 0.1.0 that have changed since, for an error that gives the new name."""

import re

# Modules: every class of the old one is in the new one.
OLD_MODULES = {
    "vr1.module": "vr1.modules.grpo",
    "vr1.sft": "vr1.modules.sft",
    "vr1.detector": "vr1.modules.base",
    "vr1.records": "vr1.types",
    "vr1.experience": "vr1.types",
    "vr1.policy.model": "vr1.policy.policy",
    "vr1.policy.resolution": "vr1.policy.loading",
    "vr1.rollout.settings": "vr1.rollout.sampling",
    "vr1.rewards.term": "vr1.rewards.base",
    "vr1.rewards.criterion": "vr1.rewards.base",
    "vr1.rewards.nothing_to_find": "vr1.rewards.base",
    "vr1.rewards.dual_format": "vr1.rewards.paper",
    "vr1.rewards.recall": "vr1.rewards.paper",
    "vr1.rewards.precision": "vr1.rewards.paper",
    "vr1.rewards.iou": "vr1.rewards.overlap",
    "vr1.rewards.dynamic_iou": "vr1.rewards.overlap",
    "vr1.rewards.average_precision": "vr1.rewards.overlap",
    "vr1.rewards.completeness": "vr1.rewards.counts",
    "vr1.rewards.count": "vr1.rewards.counts",
    "vr1.rewards.label_accuracy": "vr1.rewards.counts",
    "vr1.rewards.length": "vr1.rewards.text",
    "vr1.rewards.think_answer": "vr1.rewards.text",
    "vr1.families.wording": "vr1.families.base",
    "vr1.families.qwen2_vl": "vr1.families.qwen",
    "vr1.families.qwen2_5_vl": "vr1.families.qwen",
    "vr1.families.qwen3_vl": "vr1.families.qwen",
    "vr1.families.described": "vr1.families.custom",
    "vr1.data.coco_data": "vr1.data.coco",
    "vr1.data.folder_data": "vr1.data.image_folder",
    "vr1.data.mixture_data": "vr1.data.mixture",
    "vr1.data.odinw_data": "vr1.data.odinw",
    "vr1.data.rec_data": "vr1.data.referring",
    "vr1.data.scene_data": "vr1.data.synthetic",
    "vr1.data.scenes": "vr1.data.synthetic",
    "vr1.data.vision_r1_data": "vr1.data.vision_r1",
    "vr1.data.voc_data": "vr1.data.voc",
    "vr1.data.yolo_data": "vr1.data.yolo",
    "vr1.checkpoint_file": "vr1.checkpoints.files",
    "callbacks.bad_batch": "callbacks.guards",
    "callbacks.kl_ceiling": "callbacks.guards",
    "callbacks.non_finite_guard": "callbacks.guards",
    "callbacks.out_of_memory": "callbacks.guards",
    "callbacks.plateau": "callbacks.schedule",
    "callbacks.stages": "callbacks.schedule",
}
# Classes, by the last part of their path.
_CLASSES = {
    "Advantage": "GroupAdvantage",
    "Detector": "DetectionModule",
    "Described": "CustomFamily",
    "Finding": "Prediction",
    "FolderDataModule": "ImageFolderDataModule",
    "RecDataModule": "ReferringDataModule",
    "RecSource": "ReferringSource",
}
# Settings, by the last part of their path.
_SETTINGS = {
    "resample_equal": "resample_zero_variance",
    "keep": "cache_records",
}
# Settings that are gone, and what to do instead.
_REMOVED = {
    "box_scores": "an evaluation now reports both: map with the constant score, map_ranked with log-probabilities",
}
_PATH = re.compile(r"\b(?:vr1|callbacks)(?:\.\w+)+")
_REFUSED = re.compile(r"""(?:Option '|Key '|Unrecognized arguments: --|unrecognized arguments: --)([\w.]+)""")


def renamed_hint(message: str) -> str | None:
    """The new name, where an error message is about a name of version 0.1.0; else None.

    Args:
        message: what the parser says of settings that it cannot read.

    Example:
        >>> renamed_hint("Problem with given class_path 'vr1.module.GRPOModule'")
        'vr1.module.GRPOModule was renamed to vr1.modules.grpo.GRPOModule: change the name where it is given'
        >>> renamed_hint("Option 'resample_equal' is not accepted")
        'resample_equal was renamed to resample_zero_variance: change the name where it is given'
        >>> renamed_hint("Option 'lr' is not accepted") is None
        True
    """
    if "vr1.advantage.AdvantageEstimator is abstract" in message:
        return (
            "model.advantage is a class now: give --model.advantage GroupAdvantage before its settings, in YAML"
            " `advantage: {class_path: vr1.advantage.GroupAdvantage, init_args: {scale: none}}`"
        )
    for path in _PATH.findall(message):
        if (new := renamed(path)) != path:
            return _hint(path, new)
    for setting in _REFUSED.findall(message):
        *parents, last = setting.split(".")
        if last in _SETTINGS:
            return _hint(setting, ".".join([*parents, _SETTINGS[last]]))
        if last in _REMOVED:
            return f"{setting} is no longer a setting, leave it out: {_REMOVED[last]}"
    return None


def renamed(path: str) -> str:
    """The path of a class today.

    Example:
        >>> renamed("vr1.families.Described"), renamed("vr1.families.Qwen3VL")
        ('vr1.families.CustomFamily', 'vr1.families.Qwen3VL')
    """
    module, _, name = path.rpartition(".")
    return f"{OLD_MODULES.get(module, module)}.{_CLASSES.get(name, name)}"


def _hint(old: str, new: str) -> str:
    return f"{old} was renamed to {new}: change the name where it is given"
