"""The processor of Griffon-G: the image resized to a square, and its token once for each feature in the prompt.

The released code puts a sentinel (-200) at the place of the image and replaces it by features within its forward. Here
an unused token of Gemma 2's tokenizer stands there, once for each feature, so that a prompt is an ordinary row of
tokens. No embedding is added: the unused token has one, which is never read.

Shape letters: B prompts, P prompt tokens.
"""

from collections.abc import Sequence
from typing import Any

from PIL import Image
from PIL.Image import Resampling
from tokenizers import AddedToken
from transformers import AutoTokenizer, BatchFeature, CLIPImageProcessor, PreTrainedConfig, ProcessorMixin

from vr1.errors import UserError
from vr1.griffon.config import RELEASED_TYPE, GriffonGConfig, tower_folder

IMAGE_TOKEN = "<unused0>"
# One user message of an image and a question; without the token that begins a text, which the processor adds.
CHAT_TEMPLATE = (
    "{% for message in messages %}<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE_TOKEN + "\n"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def square_images(side: int, mean: Sequence[float], std: Sequence[float]) -> CLIPImageProcessor:
    """An image processor that resizes images to a square, as the released code does: bilinear, and without a crop.

    The aspect ratio is not kept, so that coordinates from 0 to 1 scale each axis by itself.

    Args:
        side: of the square in pixels.
        mean: of red, green and blue, in 0..1.
        std: standard deviations, likewise.
    """
    return CLIPImageProcessor(
        size={"height": side, "width": side},
        resample=Resampling.BILINEAR,
        do_center_crop=False,
        do_convert_rgb=False,
        image_mean=list(mean),
        image_std=list(std),
    )


class GriffonGProcessor(ProcessorMixin):
    """Encodes prompts with images; ``from_pretrained`` reads folders of vr1 and those of the released weights.

    Args:
        image_processor: as `square_images` returns it.
        tokenizer: of Gemma 2.
        image_tokens: tokens of an image.
        image_token: the token that stands for the image.
        chat_template: of one user message and the model's answer; None takes that of the released code.

    Raises:
        UserError: the tokenizer has no such token.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_tokens: int = 1369,
        image_token: str = IMAGE_TOKEN,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        if image_token not in tokenizer.get_vocab():
            raise UserError(
                f"the tokenizer has no token {image_token}, which stands for the image; give the tokenizer of Gemma 2"
            )
        # Of one piece, and no part of an answer's text; its id stays as it is.
        tokenizer.add_tokens([AddedToken(image_token, normalized=False, special=True)], special_tokens=True)
        self.image_tokens, self.image_token = image_tokens, image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    def __call__(self, images: Any = None, text: Any = None, **settings: Any) -> BatchFeature:  # type: ignore[override]
        """Encode B texts with their images.

        Args:
            images: images (RGB, of PIL), in the order of their tokens in the texts; or a list of them for each text.
            text: a text or B texts, with the image token once for each image.
            settings: of the tokenizer: ``padding``, ``return_tensors`` and others.

        Returns:
            ``input_ids`` and ``attention_mask`` ``[B, P]``, and ``pixel_values`` ``[images, 3, side, side]``.

        Raises:
            UserError: an image of another kind or mode.
            ValueError: the texts have another number of image tokens than there are images.
        """
        texts = [text] if isinstance(text, str) else list(text)
        flat = _flat(images)
        named = sum(one.count(self.image_token) for one in texts)
        if named != len(flat):
            raise ValueError(f"the texts have {named} image tokens {self.image_token} and {len(flat)} images")
        vision = self.image_processor(images=flat, return_tensors=settings.get("return_tensors")) if flat else {}
        begin = self.tokenizer.bos_token or ""
        tokens = self.tokenizer(
            [begin + one.replace(self.image_token, self.image_token * self.image_tokens) for one in texts],
            **{**settings, "add_special_tokens": False},
        )
        return BatchFeature({**tokens, **vision}, tensor_type=settings.get("return_tensors"))

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors of a batch."""
        return ["input_ids", "attention_mask", "pixel_values"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Read a processor; arguments as for transformers' ``from_pretrained``.

        Of released weights, the tokenizer is in their folder and the image processor in that of the vision tower.

        Raises:
            UserError: of released weights, a file is missing or does not belong to the others.
        """
        folder = str(pretrained_model_name_or_path)
        try:
            released, _ = PreTrainedConfig.get_config_dict(folder)
        except OSError:
            # The folder of a processor alone.
            released = {}
        if released.get("model_type") != RELEASED_TYPE:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        config = GriffonGConfig.from_pretrained(folder)
        tower = tower_folder(released.get("mm_vision_tower", ""), folder)
        try:
            images = CLIPImageProcessor.from_pretrained(tower)
        except OSError as error:
            raise UserError(
                f"{tower}: its preprocessor_config.json cannot be read ({error}); copy that of the CLIP model"
            ) from error
        side = config.vision_config.image_size
        processor = cls(
            image_processor=square_images(side, images.image_mean, images.image_std),
            tokenizer=AutoTokenizer.from_pretrained(folder),
            image_tokens=config.image_tokens,
        )
        if processor.image_token_id != config.image_token_id:
            raise UserError(
                f"{folder}: its tokenizer has {IMAGE_TOKEN} as {processor.image_token_id}, Gemma 2's as"
                f" {config.image_token_id}; copy the tokenizer of the released weights"
            )
        return processor


def _flat(images: Any) -> list[Image.Image]:
    """The images in one list, all checked to be RGB."""
    if images is None:
        return []
    if isinstance(images, list | tuple):
        return [image for part in images for image in _flat(part)]
    if not isinstance(images, Image.Image):
        raise UserError(f"an image is a {type(images).__name__}; give images of PIL: Image.open(path).convert('RGB')")
    if images.mode != "RGB":
        raise UserError(
            f"an image of {images.width} x {images.height} pixels has the mode {images.mode} and is no RGB; convert it:"
            " image.convert('RGB')"
        )
    return [images]
