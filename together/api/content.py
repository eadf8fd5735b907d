"""The content of a message: text, and pictures that come with it. Nothing is fetched."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from together.api.responses import wrong
from together.requests import Attached
from together.wording import quoted

PICTURE_TYPES = ("image/png", "image/jpeg", "image/webp")
PICTURES = tuple(f"data:{kind}" for kind in PICTURE_TYPES)
_LONGEST_START = 40  # letters of such an address before its data


class Strict(BaseModel):
    """Converts no value: a number written as text is an error."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class ImageUrl(Strict):
    url: str


class ContentPart(Strict):
    type: str
    text: str | None = None
    image_url: ImageUrl | None = None


def content_of(content: str | Sequence[ContentPart] | None, role: str, where: str) -> tuple[str, tuple[Attached, ...]]:
    """A message's text, and the pictures in it."""
    if content is None or isinstance(content, str):
        return content or "", ()
    text, pictures = "", []
    for part in content:
        if part.type == "text" and part.text is not None:
            text += part.text
        elif part.type == "image_url" and part.image_url is not None and role == "user":
            pictures.append(Attached(len(text), picture_of(part.image_url.url, where)))
        elif part.type == "image_url" and role != "user":
            raise wrong(where, "only a user's message has pictures, not one of the role {role}", role=role)
        else:
            raise wrong(where, "only parts of type text and image_url are read, not {kind}", kind=quoted(part.type))
    return text, tuple(pictures)


def picture_of(url: str, where: str) -> str:
    """What a data URL holds, in base64."""
    start, mark, _ = url[:_LONGEST_START].partition(";base64,")
    if not mark or start.lower() not in PICTURES:
        text = "a picture comes with its request, as {first};base64,… (or {others}); nothing is fetched from elsewhere"
        raise wrong(where, text, first=PICTURES[0], others=PICTURES[1:])
    return url[len(start) + len(mark) :]
