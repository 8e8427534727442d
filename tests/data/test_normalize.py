import pytest

from app.data.normalize import clean_text, is_placeholder, normalize_image, normalize_links


@pytest.mark.parametrize(
    "text",
    [
        *("N/A", "n / a", "NA.", "N/C", "nc", "None", "none.", "Unknown.", "Not applicable", "Noncontributory"),
        *("non contributory.", "Non-contributory", "See factoid", "please see factiod.", "Please see topic."),
        *("Left Blank", "-1.-1", "Replace this - DESCRIPTION OF THE IMAGE OR FINDINGS.", "IN PROGRESS", "  N/A \r\n"),
    ],
)
def test_placeholders_are_recognised(text: str) -> None:
    assert is_placeholder(text)
    assert clean_text(text) is None


@pytest.mark.parametrize("text", ["Normal.", "Nausea", "none indicated", "See the discussion of adenoma below", "CT"])
def test_what_says_something_is_kept(text: str) -> None:
    assert not is_placeholder(text)
    assert clean_text(text) == text


def test_text_is_cleaned_of_what_no_person_typed() -> None:
    assert clean_text("Broca&#39;s\r\narea ") == "Broca's\narea"
    assert clean_text("one\u000btwo") == "one\ntwo"
    assert clean_text("\uf0a7 bullet\u00a0here") == "\u2022 bullet here"
    assert clean_text("See <http://example.org/c>") == "See <http://example.org/c>"
    assert clean_text(None) is None
    assert clean_text("  ") is None


@pytest.mark.parametrize(
    ("text", "links"),
    [
        (None, []),
        ("www.example.org/a.htm", ["https://www.example.org/a.htm"]),
        ("http://example.org/b?x=1&y=2", ["http://example.org/b?x=1&y=2"]),
        ("www.example.org/v5n4/ article1.html", ["https://www.example.org/v5n4/article1.html"]),
        ("a.org/x www.b.org/y", ["https://a.org/x", "https://www.b.org/y"]),
        ("javascript://example.org/%0aalert(1)", []),
        ("A tumor board, on paper", []),
    ],
)
def test_links_get_a_scheme_and_only_web_addresses_stay(text: str | None, links: list[str]) -> None:
    assert normalize_links(text) == links


def test_image_values_are_normalised_and_doubts_are_flagged() -> None:
    raw = {
        "Type": "CT",
        "Location": "Left Blank",
        "Location Category": "Abdomen",
        "Description": {
            "ACR Codes": "-1.-1",
            "Age": "0",
            "Caption": "IN PROGRESS.",
            "Figure Part": None,
            "Modality": " MR - Montage of Images",
            "Plane": "Photograph",
            "Sex": "N/A",
        },
    }
    norm = normalize_image(raw, None)
    unknown = ("location", "age", "sex", "caption", "acr_codes", "source_url")
    assert {name: norm[name] for name in unknown} == dict.fromkeys(unknown)
    assert norm["modality_detail"] == "MR - Montage of Images"
    assert norm["quality_flags"] == [
        "caption_placeholder",
        "age_zero",
        "sex_unknown",
        "plane_not_anatomical",
        "location_left_blank",
        "acr_unknown",
        "modality_detail_whitespace",
        "source_url_missing",
    ]


def test_a_source_row_gives_addresses() -> None:
    raw = {
        "Type": "MR",
        "Location": "Spine",
        "Location Category": "Spine and Muscles",
        "Description": {
            "ACR Codes": "3.3",
            "Age": "7",
            "Caption": "Axial FLAIR",
            "Figure Part": "2a",
            "Modality": "MR",
            "Plane": "Axial",
            "Sex": "male",
        },
    }
    row = {
        "Img_Large": "https://openi.nlm.nih.gov//imgs/512/x.png",
        "URL_Article_image": "https://medpix.nlm.nih.gov/c",
    }
    norm = normalize_image(raw, row)
    assert norm["source_url"] == "https://openi.nlm.nih.gov/imgs/512/x.png"
    assert norm["age"] == 7
    assert norm["quality_flags"] == ["caption_uninformative"]
