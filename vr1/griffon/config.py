"""The config of Griffon-G, and how it is read from the ``config.json`` of released weights."""

from pathlib import Path
from typing import Any, ClassVar

from transformers import AutoConfig, CLIPVisionConfig, Gemma2Config, PreTrainedConfig

from vr1.errors import UserError

# Padding of the projector's convolution, by the names of the released configs.
PROJECTORS = {"conv_reduce": 1, "conv_reduce_wo_pad": 0}
RELEASED_TYPE = "gemma2_Griffon"
# Ids of Gemma 2's tokenizer: an unused token stands for the image, and an answer ends with the end of the turn.
IMAGE_TOKEN_ID = 7
END_OF_TURN_ID = 107
_TEXT_TYPES = ("gemma2", "llama", "qwen2")
_TEXT_KEYS = {*Gemma2Config().to_dict(), "rope_theta"} - {"architectures", "model_type", "transformers_version"}


class GriffonGConfig(PreTrainedConfig):
    """The config of Griffon-G.

    Args:
        text_config: of the language model, Gemma 2 in the released weights.
        vision_config: of the CLIP vision tower.
        projector_type: ``conv_reduce`` (the convolution has a padding of 1) or ``conv_reduce_wo_pad`` (none).
        vision_feature_layer: index of the hidden state of the tower that the projector reads; 0 is the embedding.
        image_token_id: token that stands for the image in a prompt, once for each of its features.
        released: keys of the released ``config.json`` that transformers does not know, for export.

    Raises:
        UserError: an unknown projector or language model.

    Example:
        >>> config = GriffonGConfig(vision_config={"image_size": 1022, "patch_size": 14})
        >>> config.image_tokens
        1369
    """

    model_type = "griffon_g"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig, "vision_config": CLIPVisionConfig}

    # Configs of transformers, or their keys.
    text_config: Any = None
    vision_config: Any = None
    projector_type: str = "conv_reduce"
    vision_feature_layer: int = -2
    image_token_id: int = IMAGE_TOKEN_ID
    released: dict[str, Any] | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.text_config, PreTrainedConfig):
            text = {"model_type": "gemma2", **(self.text_config or {})}
            if text["model_type"] not in _TEXT_TYPES:
                raise UserError(
                    f"text_config: {text['model_type']} is no language model of Griffon-G; give one of"
                    f" {', '.join(_TEXT_TYPES)}"
                )
            self.text_config = AutoConfig.for_model(**text)
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = CLIPVisionConfig(**(self.vision_config or {}))
        if self.projector_type not in PROJECTORS:
            raise UserError(f"the projector {self.projector_type} is not known; known are {', '.join(PROJECTORS)}")
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        super().__post_init__(**kwargs)

    @property
    def vision_layers(self) -> int:
        """Layers of the vision tower that the projector's input depends on."""
        layers, index = self.vision_config.num_hidden_layers, self.vision_feature_layer
        return index if index >= 0 else layers + 1 + index

    @property
    def image_tokens(self) -> int:
        """Tokens of an image: the side of the patches' map, halved by the convolution, squared."""
        side = self.vision_config.image_size // self.vision_config.patch_size
        return ((side + 2 * PROJECTORS[self.projector_type] - 3) // 2 + 1) ** 2

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Read a config, also that of released weights; arguments as for transformers' ``from_pretrained``.

        Raises:
            UserError: released weights that this class cannot load; see `from_released`.
        """
        found, _ = cls.get_config_dict(pretrained_model_name_or_path)
        reader = ReleasedGriffonGConfig if found.get("model_type") == RELEASED_TYPE else cls
        # From here to `from_released`, which looks for the vision tower's folder.
        kwargs["name_or_path"] = str(pretrained_model_name_or_path)
        return super(GriffonGConfig, reader).from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_released(cls, released: dict[str, Any], folder: str) -> dict[str, Any]:
        """Keys of this config for a released ``config.json``, which is flat and names the vision tower's folder.

        Args:
            released: the content of the file.
            folder: where it comes from.

        Raises:
            UserError: another projector, other features of the tower, or no CLIP config in the tower's folder.
        """
        projector = released.get("mm_projector_type", "linear")
        if projector not in PROJECTORS:
            raise UserError(
                f"{folder}/config.json: the projector {projector} is not that of Griffon-G ({', '.join(PROJECTORS)});"
                " Griffon v1 and v2 are not read, give the weights of Griffon-G"
            )
        if (features := released.get("mm_vision_select_feature", "patch")) != "patch":
            raise UserError(
                f"{folder}/config.json: mm_vision_select_feature={features} is not that of Griffon-G (patch); give the"
                " released weights of Griffon-G"
            )
        tower = tower_folder(released.get("mm_vision_tower", ""), folder)
        return {
            "text_config": {
                "model_type": "gemma2",
                **{key: value for key, value in released.items() if key in _TEXT_KEYS},
            },
            "vision_config": CLIPVisionConfig.from_pretrained(tower).to_dict(),
            "dtype": released.get("torch_dtype", released.get("dtype")),
            "projector_type": projector,
            "vision_feature_layer": released.get("mm_vision_select_layer", -2),
            "released": {key: value for key, value in released.items() if key not in _TEXT_KEYS},
        }


class ReleasedGriffonGConfig(GriffonGConfig):
    """Reads the ``config.json`` of released weights; what it returns is a `GriffonGConfig`."""

    model_type = RELEASED_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A `GriffonGConfig`; arguments as for transformers' ``from_dict``, with ``name_or_path``.

        Raises:
            UserError: as `GriffonGConfig.from_released`.
        """
        return GriffonGConfig.from_dict(cls.from_released(config_dict, kwargs.get("name_or_path", "")), **kwargs)


class GriffonLlama2Config(PreTrainedConfig):
    """Stands for weights that are not read (Griffon v2 among them), for an error that says so."""

    model_type = "llama2_Griffon"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Raises: UserError, always."""
        raise UserError(
            f"{kwargs.get('name_or_path', '')}/config.json: {cls.model_type} is an earlier Griffon, or one around"
            f" another language model; only Griffon-G with Gemma 2 ({RELEASED_TYPE}) is read"
        )


class GriffonQwen2Config(GriffonLlama2Config):
    """Likewise, for the arrangement around Qwen2.5, whose weights are not public."""

    model_type = "qwen2_Griffon"


def tower_folder(name: str, folder: str) -> Path:
    """The folder of the CLIP vision tower of released weights, with its config and its image processor.

    Args:
        name: ``mm_vision_tower`` of the released config, a path on the machine of the authors.
        folder: the folder of the released weights.

    Raises:
        UserError: no such folder in ``folder`` or beside it, nor at ``name``.
    """
    last = Path(name).name
    places = [Path(folder) / last, Path(folder).parent / last, Path(name)]
    for folder_of_tower in places:
        if last and (folder_of_tower / "config.json").is_file():
            return folder_of_tower
    place = places[0] if last and Path(folder).is_dir() else "a folder of that name beside the downloaded weights"
    raise UserError(
        f"{folder}: the config of its vision tower (mm_vision_tower={name}) is missing; copy config.json and"
        f" preprocessor_config.json of that CLIP model to {place} (weights are not needed)"
    )
