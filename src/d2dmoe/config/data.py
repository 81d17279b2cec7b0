"""Which data a task uses and how training varies them: typed, and checked before any job starts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter, field_validator, model_validator

from d2dmoe.config.sources import (
    IMAGE_FORMS,
    TEXT_FORMS,
    TOKENIZER_FORMS,
    check_form,
    check_images,
    check_texts,
    check_tokenizer,
    class_folders,
    described,
)
from d2dmoe.config.strict import COMPLETED, Strict
from d2dmoe.errors import ConfigError

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]


class ImagesConfig(Strict):
    """An image classification set: where it comes from and how it is split."""

    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "loss")  # the first is the task's measure
    sample: ClassVar[str] = "an image"

    kind: Annotated[Literal["images"], COMPLETED] = Field(description="What the samples are")
    source: str = Field(description="Where the images come from: " + described(IMAGE_FORMS))
    image_size: Annotated[int, COMPLETED] = Field(
        gt=0,
        description="Height and width in pixels; other images are resized on their shorter side "
        "and cropped to the centre",
    )
    validation: Count | None = Field(
        None,
        description="Images held out of the training set, equally many of each class (null: about "
        "a tenth); all choices are made on these, none on test images",
    )
    mean: Annotated[list[float], COMPLETED] = Field(
        min_length=3, max_length=3, description="Mean of each channel (R, G, B), pixels in 0..1"
    )
    std: Annotated[list[Positive], COMPLETED] = Field(
        min_length=3,
        max_length=3,
        description="Standard deviation of each channel (R, G, B), pixels in 0..1",
    )
    max_train: Count | None = Field(
        None, description="Train on the first so many images only, class-balanced; for trials"
    )
    max_test: Count | None = Field(
        None, description="Test on the first so many images only, class-balanced; for trials"
    )
    in_memory: bool = Field(
        True,
        description="Decode every image once and keep the pixels; false (for sets as large as "
        "ImageNet) decodes images each time they are read",
    )

    @field_validator("source")
    @classmethod
    def _has_a_known_form(cls, source: str) -> str:
        return check_form(source, IMAGE_FORMS, "dataset")


class TokenizerConfig(Strict):
    """What cuts texts into tokens: trained on the task's training texts, or ready-made."""

    source: str = Field("train", description="Which tokenizer: " + described(TOKENIZER_FORMS))
    vocab_size: int | None = Field(
        None,
        ge=260,  # all bytes and the special tokens
        description="Most tokens of a trained vocabulary (byte-level BPE); only with source train",
    )
    end_of_text: str = Field(
        "<|endoftext|>", min_length=1, description="Corpora: the token after each document"
    )
    pad: str = Field("[PAD]", min_length=1, description="Texts: the token that fills a batch up")

    @field_validator("source")
    @classmethod
    def _has_a_known_form(cls, source: str) -> str:
        return check_form(source, TOKENIZER_FORMS, "tokenizer")

    @model_validator(mode="after")
    def _vocabulary_is_trained(self):
        if (self.source == "train") != (self.vocab_size is not None):
            need = "needs" if self.source == "train" else "has its own, it takes no"
            raise ValueError(f"source = '{self.source}' {need} vocab_size")
        return self


class _TextSource(Strict):
    """What labelled texts and corpora have in common."""

    source: str = Field(description="Where the texts come from: " + described(TEXT_FORMS))
    subset: str | None = Field(
        None, description="The configuration of a set on the hub that has several, e.g. en"
    )
    text: str = Field("text", description="Column that holds the text")
    tokenizer: Annotated[TokenizerConfig, COMPLETED]

    @field_validator("source")
    @classmethod
    def _has_a_known_form(cls, source: str) -> str:
        return check_form(source, TEXT_FORMS, "dataset")

    @model_validator(mode="after")
    def _only_the_hub_has_subsets(self):
        if self.subset is not None and not self.source.startswith("hub:"):
            raise ValueError(f"subset = '{self.subset}': only hub: sources have subsets")
        return self

    def _without(self, key: str, read: str):
        """Itself; the tokenizer's option `key` is of the other kind of data."""
        given = getattr(self.tokenizer, key)
        if given != TokenizerConfig.model_fields[key].default:
            raise ValueError(f"tokenizer.{key} = {given!r} is not read: give tokenizer.{read}")
        return self


class TextsConfig(_TextSource):
    """A text classification set: where it comes from, its tokens and how it is split."""

    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "loss")
    sample: ClassVar[str] = "a text"

    kind: Annotated[Literal["texts"], COMPLETED] = Field(description="What the samples are")
    label: str = Field("label", description="Column that holds the class")
    length: Annotated[int, COMPLETED] = Field(
        ge=3, description="Most tokens of a text, special ones included; the rest is cut off"
    )
    validation: Count | None = Field(
        None,
        description="Texts held out of the training set, of each class in proportion to its size "
        "(null: a tenth); all choices are made on these, none on test texts",
    )
    max_train: Count | None = Field(
        None, description="Train on the first so many texts only, in proportion; for trials"
    )
    max_test: Count | None = Field(
        None, description="Test on the first so many texts only, in proportion; for trials"
    )

    @model_validator(mode="after")
    def _no_other_token(self):
        return self._without("end_of_text", "pad")


class CorpusConfig(_TextSource):
    """A set of documents for language modelling: its source, its tokens and how it is split."""

    metrics: ClassVar[tuple[str, ...]] = ("loss", "perplexity")
    sample: ClassVar[str] = "a block of tokens"

    kind: Annotated[Literal["corpus"], COMPLETED] = Field(description="What the samples are")
    length: Annotated[int, COMPLETED] = Field(
        gt=0, description="Tokens of a block, each of which predicts the next"
    )
    validation: Count | None = Field(
        None,
        description="Documents held out of the training set (null: a tenth); all choices are made "
        "on these, none on test documents",
    )
    test: Count | None = Field(
        None,
        description="Documents of the test set: the first of the source's own (null: all), or, "
        "where it has none, so many held out of the training set",
    )
    streaming: bool = Field(
        False,
        description="Read the source only as far as is needed, for sets too large to fetch; "
        "documents are then held out from its beginning, not at random",
    )
    max_train: Count | None = Field(None, description="Train on the first so many blocks only")
    max_validation: Count | None = Field(
        None, description="Validate on so many blocks only, evenly spaced"
    )
    max_test: Count | None = Field(None, description="Test on so many blocks only, evenly spaced")

    @model_validator(mode="after")
    def _no_other_token(self):
        return self._without("pad", "end_of_text")

    @model_validator(mode="after")
    def _stream_has_a_tokenizer(self):
        if self.streaming and self.tokenizer.source == "train":
            raise ValueError(
                "streaming needs a ready tokenizer (tokenizer.source = hub:NAME or path:FILE): "
                "training one would read the whole source"
            )
        return self

    @model_validator(mode="after")
    def _stream_has_numbers(self):
        if self.streaming and self.validation is None:
            raise ValueError(
                "streaming needs validation, a number of documents: a tenth of them is known only "
                "when all have been read"
            )
        return self


DataConfig = Annotated[
    ImagesConfig | TextsConfig | CorpusConfig,
    Field(discriminator="kind", description="The task's data: images, texts or a corpus"),
]


def data_config(values: Mapping[str, Any]) -> ImagesConfig | TextsConfig | CorpusConfig:
    """The data configuration of plain values, as rules hand them to scripts."""
    return TypeAdapter(DataConfig).validate_python(dict(values))


def check_source(cfg: ImagesConfig | TextsConfig | CorpusConfig, root: Path) -> None:
    """Refuse data whose local files are not there; `root` is the repository root.

    Cheap: it looks at folders only, opens no file and no connection.

    Raises:
        DataError: a vendored set, a local file or folder is missing or lacks its splits.
        ConfigError: so many images cannot be held out.
    """
    if cfg.kind == "images":
        check_images(cfg.source, root)
        _check_shares(cfg, root)
        return
    check_texts(cfg.source, root, holds_out_test=cfg.kind == "corpus" and cfg.test is not None)
    check_tokenizer(cfg.tokenizer.source, root)


def _check_shares(cfg: ImagesConfig, root: Path) -> None:
    kind, _, name = cfg.source.partition(":")
    classes = len(class_folders(root / name)) if kind == "path" else 1
    if cfg.validation is not None and cfg.validation % classes:
        raise ConfigError(
            f"data.validation = {cfg.validation} images cannot be taken in equal shares from the "
            f"{classes} classes of {cfg.source}; give a multiple of {classes}"
        )
