"""Normalized values and quality flags for one source record; the raw record is never changed."""

import html
import re
from collections.abc import Mapping
from typing import Any, Final

from app.data.fields import CASE_FIELDS
from app.data.record import LEFT_BLANK, UNKNOWN_ACR_CODE

Document = dict[str, Any]


def _texts(prefix: str) -> dict[str, str]:
    """Key in ``norm`` to key in the source, of the case fields that are one cleaned text of the source."""
    declared = (field for field in CASE_FIELDS.values() if field.kind != "list")
    texts = {field.path: field.source.removeprefix(prefix) for field in declared if field.source.startswith(prefix)}
    return {path.rpartition(".")[2]: key for path, key in texts.items()}


CASE_TEXT_FIELDS: Final = _texts("Case.")
TOPIC_TEXT_FIELDS: Final = _texts("Topic.")
# Values of Location that name no part of the body; "Left Blank" is no value at all.
NOT_ANATOMICAL: Final = frozenset({"Bethesda, MD", "Generalized", "Pathology"})
# Values of Plane that describe a kind of image, not a section through the body.
NOT_A_PLANE: Final = frozenset({"Photograph", "Gross Pathology", "Drawing", "Other View", "NOS", "Multiple or Montage"})

_PLACEHOLDER = re.compile(
    r"n ?/ ?a|na|n/c|nc|none(?: available| provided)?|unknown|unavailable|not (?:applicable|entered|known|provided)"
    r"|hx not provided|non[- ]?contributory|(?:please )?see (?:factoid|factiod|topic|discussion)|some discussion"
    r"|test case for ts|left blank|in progress|-1\.-1|replace this - .*"
)
# Captions that only repeat the acquisition, never what the image shows.
_UNINFORMATIVE_CAPTION = re.compile(
    r"(?:(?:axial|coronal|sagitt?al|contrast enhanced|subsequent|post injury|follow-up|slice|ct|mri?|t1|t2|t2\*|flair"
    r"|fgre|fat sat|images?|figure|scan|\d+)[ ,()-]*)+"
)
_BULLETS = dict.fromkeys(map(ord, "\uf06e\uf0a7"), "\u2022") | {ord("\uf0e0"): "\u2192", 0x00A0: " "}
# Unicode's categories Cc, less tab and line ends, and Co.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_PRIVATE_USE = re.compile(r"[\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd]")
_LINK = re.compile(r"(?:(\w+)://)?([\w-]+(?:\.[\w-]+)+(?::\d+)?(?:[/?#][^\s<>\"]*)?)")
_BROKEN_LINK = re.compile(r"/\s+(?!www\.|\w+://)")
_GLUED_KEYWORDS = re.compile(r"[a-z)][A-Z][a-z]|[a-z]{22,}")


def fold_whitespace(text: str) -> str:
    """Collapse every run of white space to one space and trim."""
    return " ".join(text.split())


def is_placeholder(text: str) -> bool:
    """Whether a text says nothing but "nothing was entered here"."""
    return _PLACEHOLDER.fullmatch(fold_whitespace(text).casefold().rstrip(" .")) is not None


def clean_text(text: str | None) -> str | None:
    """A text as a person would type it: entities decoded, one kind of line end, no control characters.

    Returns:
        The cleaned text, or None for a missing, empty or placeholder text.
    """
    if text is None:
        return None
    text = html.unescape(text).replace("\r\n", "\n").replace("\r", "\n").replace("\v", "\n")
    text = text.translate(_BULLETS)
    text = _PRIVATE_USE.sub("", _CONTROL.sub("", text)).strip()
    return None if not text or is_placeholder(text) else text


def normalize_links(text: str | None) -> list[str]:
    """The http(s) addresses in a text; an address without a scheme gets ``https://``."""
    unbroken = _BROKEN_LINK.sub("/", html.unescape(text or ""))
    return [
        f"{scheme.lower() or 'https'}://{address.rstrip('.,;')}"
        for scheme, address in _LINK.findall(unbroken)
        if scheme.lower() in ("", "http", "https")
    ]


def normalize_image(raw: Mapping[str, Any], source: Mapping[str, str] | None) -> Document:
    """The ``norm`` sub-document of an image.

    Args:
        raw: one record of descriptions_*.jsonl.
        source: its row in images_overview.csv, if there is one.
    """
    description = raw["Description"]
    recorded_age = int(description["Age"])
    plane = description["Plane"]
    acr_codes = description["ACR Codes"]
    return {
        "modality": raw["Type"],
        "modality_detail": fold_whitespace(description["Modality"]),
        "location": None if raw["Location"] == LEFT_BLANK else raw["Location"],
        "location_category": raw["Location Category"],
        "plane": plane,
        # Age "0" stands for "unknown" in most of the cases that carry it (see quality flag age_zero).
        "age": recorded_age or None,
        "sex": description["Sex"] if description["Sex"] in ("male", "female") else None,
        "caption": _caption(description["Caption"]),
        "figure_part": description["Figure Part"],
        "acr_codes": None if acr_codes == UNKNOWN_ACR_CODE else acr_codes,
        "source_url": source["Img_Large"].replace("nih.gov//", "nih.gov/") if source else None,
        "article_url": source["URL_Article_image"] if source else None,
        "quality_flags": _image_flags(raw, has_source=source is not None),
    }


def _caption(text: str) -> str | None:
    cleaned = clean_text(text)
    return fold_whitespace(cleaned) if cleaned else None


def _image_flags(raw: Mapping[str, Any], *, has_source: bool) -> list[str]:
    description = raw["Description"]
    caption = _caption(description["Caption"])
    folded = (caption or "").casefold().rstrip(" .")
    flags = {
        "caption_placeholder": caption is None,
        "caption_uninformative": bool(folded) and _UNINFORMATIVE_CAPTION.fullmatch(folded) is not None,
        "caption_whitespace": re.search(r"[\n\r\t]", description["Caption"]) is not None,
        "age_zero": description["Age"] == "0",
        "sex_unknown": description["Sex"] == "N/A",
        "plane_missing": description["Plane"] is None,
        "plane_not_anatomical": description["Plane"] in NOT_A_PLANE,
        "location_left_blank": raw["Location"] == LEFT_BLANK,
        "location_not_anatomical": raw["Location"] in NOT_ANATOMICAL,
        "acr_unknown": description["ACR Codes"] == UNKNOWN_ACR_CODE,
        "modality_detail_whitespace": description["Modality"] != description["Modality"].strip(),
        "source_url_missing": not has_source,
    }
    return [flag for flag, present in flags.items() if present]


def normalize_case(raw: Mapping[str, Any], images: list[Document]) -> Document:
    """The ``norm`` sub-document of a case.

    Args:
        raw: one record of data_*.jsonl.
        images: the normalised images of the case, which agree on age, sex and location; a value on
            which they disagree becomes null and the flag ``images_disagree`` is set.
    """
    case, topic = raw["Case"], raw["Topic"]
    norm: Document = {name: clean_text(case[key]) for name, key in CASE_TEXT_FIELDS.items()}
    norm["topic"] = {name: clean_text(topic[key]) for name, key in TOPIC_TEXT_FIELDS.items()}
    norm["topic"]["external_links"] = normalize_links(topic["External Links"])
    norm["modalities"] = sorted({image["modality"] for image in images})
    norm["planes"] = sorted({image["plane"] for image in images if image["plane"]})
    norm["modality_details"] = sorted({image["modality_detail"] for image in images})
    norm["image_count"] = len(images)
    disagree = False
    for name in ("location", "location_category", "age", "sex"):
        values = {image[name] for image in images}
        norm[name] = values.pop() if len(values) == 1 else None
        disagree = disagree or bool(values)
    left_blank = norm["location"] is None and any("location_left_blank" in image["quality_flags"] for image in images)
    norm["quality_flags"] = _case_flags(raw, norm, disagree=disagree, left_blank=left_blank)
    return norm


def _case_flags(raw: Mapping[str, Any], norm: Document, *, disagree: bool, left_blank: bool) -> list[str]:
    case, topic = raw["Case"], raw["Topic"]
    texts = [text for text in (*case.values(), *topic.values()) if text]
    flags = {
        **{f"{name}_placeholder": bool(case[key]) and norm[name] is None for name, key in CASE_TEXT_FIELDS.items()},
        "acr_unknown": topic["ACR Code"] == UNKNOWN_ACR_CODE,
        "keywords_run_together": _GLUED_KEYWORDS.search(topic["Keywords"] or "") is not None,
        "link_without_scheme": bool(topic["External Links"]) and "://" not in topic["External Links"],
        "html_entities": any(html.unescape(text) != text for text in texts),
        "line_ends": any("\r" in text for text in texts),
        "control_characters": any(_CONTROL.search(text) for text in texts),
        "private_use_characters": any(_PRIVATE_USE.search(text) for text in texts),
        "images_disagree": disagree,
        "location_left_blank": left_blank,
    }
    return [flag for flag, present in flags.items() if present]
