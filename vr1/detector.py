"""A loaded model that answers a question about one image with boxes, by the same code as every evaluation."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from vr1.checkpoints.trained import Dtype, load_trained
from vr1.errors import UserError
from vr1.families import Family
from vr1.metrics.answer_file import ScoredCompletion
from vr1.modules.evaluation import answer_prompts, predictions_of
from vr1.policy.loading import PolicySource
from vr1.policy.policy import Policy
from vr1.prompts import PromptEncoder
from vr1.rewards import Reward
from vr1.rollout import Sampling, SharedPrefixSampler
from vr1.types import DetectionRecord, Prediction, Targets, as_boxes

_NOTHING = Targets(boxes_xyxy=as_boxes([]), labels=())


class Detector:
    """Finds objects in images.

    Args:
        source: where the policy comes from: its processor, and its family where none is given.
        policy: the model, on the device where it shall run.
        family: prompt and answer format; None takes the model's own.
        reward: what an answer is worth when true boxes are given; None takes the default terms.
        sampling: how answers are sampled; greedy by default. Of a group the first completion counts.
        max_prompt_tokens: longest prompt, image tokens included.
        name: of the model, to be shown; None takes the source's path.

    Example:
        >>> from vr1.data import SceneSource
        >>> record = SceneSource(1, "val")[0]
        >>> detector = Detector.load(device="cpu")
        >>> found = detector.find(record.image, record.categories).detections
        >>> found.boxes_xyxy.shape[1], len(found.labels) == len(found.scores)
        (4, True)
        >>> detector.answer(record).completion == found.completion
        True
    """

    def __init__(
        self,
        source: PolicySource,
        policy: Policy,
        *,
        family: Family | None = None,
        reward: Reward | None = None,
        sampling: Sampling = Sampling(group_size=1, temperature=0.0),  # noqa: B008 - a frozen dataclass is safe to share
        max_prompt_tokens: int = 4096,
        name: str | None = None,
    ) -> None:
        self.source, self.policy, self.name = source, policy.eval(), name or source.path
        self.family, self.reward, self.sampling = family or source.family(), reward or Reward(), sampling
        self.encoder = PromptEncoder(source.processor(), self.family, max_prompt_tokens)
        # One for all answers, since it remembers what it has tried.
        self._sampler = SharedPrefixSampler()

    @classmethod
    def load(
        cls,
        path: str = PolicySource.path,
        *,
        family: Family | None = None,
        reward: Reward | None = None,
        device: str | None = None,
        dtype: Dtype | None = None,
        max_pixels: int | None = None,
        max_new_tokens: int = 512,
    ) -> "Detector":
        """Load a model.

        Args:
            path: a run, a checkpoint, a folder of a model or of adapters, or a hub name; see
                `vr1.checkpoints.trained.load_trained`. Default: the model that is part of vr1.
            family: as for the class.
            reward: as for the class.
            device: ``cpu``, ``cuda``, ``cuda:1``; None takes a GPU if there is one.
            dtype: precision of the weights; None takes that of the run, or bfloat16 on a GPU and float32 on a CPU.
            max_pixels: largest model input in pixels; None takes that of the run, or the processor's own.
            max_new_tokens: longest answer in tokens.

        Raises:
            UserError: there is no such model or device, or the model does not fit its settings.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"device={device}: PyTorch finds no GPU here; leave it out, or see `python -m vr1 doctor`")
        default: Dtype = "bfloat16" if device.startswith("cuda") else "float32"
        source, policy = load_trained(path, dtype, max_pixels, default)
        sampling = Sampling(group_size=1, temperature=0.0, max_new_tokens=max_new_tokens)
        name = "the embedded model" if path == PolicySource.path else path
        return cls(source, policy.to(device), family=family, reward=reward, sampling=sampling, name=name)

    def find(
        self,
        image: Image.Image,
        categories: Sequence[str],
        *,
        referring: bool = False,
        targets: Targets | None = None,
        name: str = "image",
    ) -> Prediction:
        """Ask the model for the boxes of all objects of some categories, or of one that a phrase describes.

        Args:
            image: RGB, upright.
            categories: names of what to find; a single phrase if ``referring``.
            referring: the phrase describes one object, such as "the man on the left".
            targets: true boxes, for the rewards of the answer; None stands for an image without objects.
            name: of the image, for messages.

        Returns:
            The answer: its text, boxes in pixels of the image with labels and scores, match and rewards.

        Raises:
            UserError: no category, or the model cannot take the image.
        """
        return self.answer(_record(image, categories, referring, targets, name))

    def answer(self, record: DetectionRecord) -> Prediction:
        """Ask the model the question of a record, of a data set for example, whose boxes the answer is compared with.

        Args:
            record: image, question and true boxes.

        Raises:
            UserError: the model cannot take the image.
        """
        prompts = self.encoder([record]).to(next(self.policy.parameters()).device)
        with torch.inference_mode():
            answers = answer_prompts(
                self.policy,
                prompts,
                self.sampling,
                self.encoder.processor.tokenizer,
                self.encoder.family,
                self._sampler,
            )
        return predictions_of(prompts, answers, self.family, self.reward)[0]

    def rate(self, prediction: Prediction, targets: Targets) -> Prediction:
        """The same answer with the match and the rewards of other true boxes.

        Args:
            prediction: of this detector.
            targets: the true boxes.
        """
        record = prediction.record
        prompts = self.encoder([_record(record.image, record.categories, record.referring, targets, record.origin)])
        answer = ScoredCompletion(completion=prediction.completion, scores=tuple(prediction.detections.scores.tolist()))
        return predictions_of(prompts, [answer], self.family, self.reward)[0]


def _record(
    image: Image.Image, categories: Sequence[str], referring: bool, targets: Targets | None, name: str
) -> DetectionRecord:
    names = tuple(filter(None, (" ".join(category.split()) for category in categories)))
    if not names:
        raise UserError("nothing to find is named; give the names of categories, such as cat, dog")
    targets = targets or _NOTHING
    boxes = as_boxes(targets.boxes_xyxy)
    return DetectionRecord(
        image=image,
        boxes_xyxy=boxes,
        labels=targets.labels,
        categories=names,
        image_id=1,
        origin=name,
        areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
        crowd=np.zeros(len(boxes), bool),
        referring=referring,
    )
