"""What the HTTP service takes: OpenAI's chat completions, and regions beside the messages."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from .limits import MAX_REGIONS

KINDS = ("box", "point", "mask", "text")


class ImageUrl(BaseModel):
    """Where an image is: a data URI."""

    url: str


class Part(BaseModel):
    """A piece of a message: text, or an image."""

    type: Literal["text", "image_url"]
    text: str = ""
    image_url: ImageUrl | None = None

    @model_validator(mode="after")
    def _whole(self) -> Part:
        if self.type == "image_url" and self.image_url is None:
            raise ValueError("a part of type image_url needs image_url")
        return self


class Message(BaseModel):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]


class Mask(BaseModel):
    """COCO's run-length encoding of a mask of the image's size."""

    size: tuple[int, int]
    counts: str | list[int]


class RegionQuestion(BaseModel):
    """One region: exactly one of the kinds; in pixels of the image from its upper left corner."""

    model_config = ConfigDict(extra="forbid")
    box: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat] | None = None
    point: tuple[FiniteFloat, FiniteFloat] | None = None
    mask: Mask | None = None
    text: str | None = None

    @model_validator(mode="after")
    def _one(self) -> RegionQuestion:
        if sum(getattr(self, kind) is not None for kind in KINDS) != 1:
            raise ValueError(f"a region is exactly one of {', '.join(KINDS)}")
        return self

    @property
    def asked(self) -> tuple[str, Any]:
        """The kind and its value."""
        kind = next(kind for kind in KINDS if getattr(self, kind) is not None)
        value = getattr(self, kind)
        return kind, value.model_dump() if isinstance(value, Mask) else value


class ChatRequest(BaseModel):
    """A request; OpenAI's other fields are accepted and have no effect."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=64)]
    regions: Annotated[list[RegionQuestion], Field(max_length=MAX_REGIONS)] = []
    model: str = ""
    stream: bool = False

    @property
    def images(self) -> list[str]:
        """The images' addresses."""
        return [part.image_url.url for part in self._parts() if part.image_url is not None]

    @property
    def words(self) -> str:
        """The text of the last message of the user that has some."""
        texts = [
            message.content
            if isinstance(message.content, str)
            else " ".join(part.text for part in message.content if part.type == "text")
            for message in self.messages
            if message.role == "user"
        ]
        return next((text for text in reversed(texts) if text.strip()), "")

    def _parts(self) -> list[Part]:
        return [part for message in self.messages if isinstance(message.content, list) for part in message.content]
