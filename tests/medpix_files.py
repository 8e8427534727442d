"""Writes a small dataset in the layout of MedPix 2.0, with every quirk that the real files have."""

import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

Document = dict[str, Any]

SPLIT_SIZES = {"train": 24, "dev": 8, "test": 8}
PLACEHOLDER_CAPTION = "Replace this - DESCRIPTION OF THE IMAGE OR FINDINGS."
_PLACES = (
    ("Brain and Neuro", "Head", "mass in the left temporal lobe next to the lateral ventricle"),
    ("Chest, Pulmonary", "Thorax", "nodule in the right upper lobe of the lung near the hilum"),
    ("Gastrointestinal", "Abdomen", "thickened wall of the sigmoid colon and dilated bowel"),
    ("Musculoskeletal", "Spine and Muscles", "tear of the anterior cruciate ligament of the knee"),
    ("Genitourinary", "Reproductive and Urinary System", "stone in the left ureter with hydronephrosis of the kidney"),
    ("Spine", "Spine and Muscles", "disc herniation at L4-L5 with narrowing of the spinal canal"),
)
_MODES = ("L", "P", "RGB", "RGBA")


def write_dataset(folder: Path, *, seed: int = 0) -> Path:
    """Write 40 cases with about 90 images; the same seed gives the same files."""
    rng = random.Random(seed)
    (folder / "splitted_dataset").mkdir(parents=True)
    (folder / "images").mkdir()
    splits: dict[str, list[tuple[Document, list[Document]]]] = {}
    number = 1000
    for split, size in SPLIT_SIZES.items():
        splits[split] = []
        for index in range(size):
            number += 1
            splits[split].append(_case(rng, number, index))
    _add_quirks(splits)
    for split, cases in splits.items():
        _write_split(folder, split, cases)
        for _, images in cases:
            for image in images:
                _draw(rng, image).save(folder / "images" / f"{image['image']}.png")
    half = len(splits["train"]) // 2
    _write_split(folder, "train_1", splits["train"][:half])
    _write_split(folder, "train_2", splits["train"][half:])
    members = {split: [case["U_id"] for case, _ in cases] for split, cases in splits.items()}
    members |= {"train_1": members["train"][:half], "train_2": members["train"][half:]}
    (folder / "splitted_dataset" / "uid_list.json").write_text(json.dumps(members))
    _write_overview(folder, [image for cases in splits.values() for _, images in cases for image in images])
    return folder


def _case(rng: random.Random, number: int, index: int) -> tuple[Document, list[Document]]:
    u_id = f"MPX{number}"
    location, category, finding = _PLACES[index % len(_PLACES)]
    modality = ("CT", "MR")[(index // 2) % 2]
    age, sex = str(rng.randint(1, 90)), rng.choice(("male", "female"))
    images = []
    for position in range(1 + index % 4):
        # One case in five has images of both modalities.
        kind = modality if index % 5 or position % 2 == 0 else {"CT": "MR", "MR": "CT"}[modality]
        images.append(
            {
                "Type": kind,
                "U_id": u_id,
                "image": f"{u_id}_synpic{20000 + number * 7 + position}",
                "Description": {
                    "ACR Codes": "1.3",
                    "Age": age,
                    "Caption": f"{rng.choice(('Axial', 'Coronal'))} {kind} shows a {finding}.",
                    "Figure Part": None,
                    "Modality": {"CT": "CT - noncontrast", "MR": "MR - T2 weighted"}[kind],
                    "Plane": ("Axial", "Coronal", "Sagittal")[position % 3],
                    "Sex": sex,
                },
                "Location": location,
                "Location Category": category,
            }
        )
    case = {
        "U_id": u_id,
        "TAC": [image["image"] for image in images if image["Type"] == "CT"],
        "MRI": [image["image"] for image in images if image["Type"] == "MR"],
        "Case": {
            "Case Diagnosis": f"{location} lesion {number}",
            "Diagnosis By": "Biopsy",
            "Differential Diagnosis": "Abscess\nMetastasis",
            "Discussion": "The lesion was removed.",
            "Exam": "Normal.",
            "Findings": f"There is a {finding}.",
            "History": f"{age} year old {sex} with pain.",
            "Media": None,
            "Title": f"{location} lesion {number}",
            "Treatment & Follow Up": "Surgical resection.",
        },
        "Topic": {
            "ACR Code": "1.3",
            "Category": "Neoplasm, benign",
            "Disease Discussion": f"Lesions of {location} are common.",
            "External Links": None,
            "Keywords": "lesion",
            "Reference": "A textbook, 2001.",
            "Title": f"{location} lesion",
        },
    }
    return case, images


def _add_quirks(splits: dict[str, list[tuple[Document, list[Document]]]]) -> None:
    train, dev, test = splits["train"], splits["dev"], splits["test"]
    for _, images in train[:3]:
        for image in images:
            image["Description"]["Age"] = "0"
            image["Description"]["Sex"] = "N/A"
    for _, images in (train[3], dev[1]):
        for image in images:
            image["Description"]["Caption"] = PLACEHOLDER_CAPTION
    train[4][1][0]["Description"] |= {"Caption": "IN PROGRESS.", "ACR Codes": "-1.-1", "Figure Part": "2a"}
    train[5][1][0]["Description"] |= {"Caption": "=1+1\tis not\n a formula\u00a0here", "Plane": None}
    train[6][1][0]["Description"] |= {"Modality": " MR - Montage of Images", "Plane": "Drawing"}
    train[7][1][0]["Description"] |= {"Caption": "CT Image", "Plane": "Photograph"}
    for image in train[8][1]:
        image["Location"] = "Bethesda, MD"
    for image in dev[2][1]:
        image["Location"] = "Left Blank"
    train[0][0]["Case"] |= {"Title": "Broca&#39;s area\r\nlesion", "Exam": "N/A", "Discussion": "Please see factiod."}
    train[1][0]["Case"] |= {"Discussion": "One\u000btwo \uf0a7 three", "Findings": None, "Treatment & Follow Up": None}
    train[2][0]["Topic"] |= {
        "Keywords": "AVMvascular malformationcongenital",
        "External Links": "www.example.org/a.htm",
    }
    train[9][0]["Topic"] |= {"Keywords": None, "Reference": "x" * 22_000, "ACR Code": "-1.-1"}
    train[10][0]["Topic"]["External Links"] = "http://example.org/b?x=1&y=2"
    test[0][0]["Case"]["Media"] = "film.mp4 \r\n"
    test[1][0]["Topic"]["Disease Discussion"] = 'See <http://example.org/c> & <script>alert("x")</script>'


def _write_split(folder: Path, split: str, cases: list[tuple[Document, list[Document]]]) -> None:
    data = folder / "splitted_dataset"
    _write_lines(data / f"data_{split}.jsonl", (case for case, _ in cases))
    _write_lines(data / f"descriptions_{split}.jsonl", (image for _, images in cases for image in images))


def _write_lines(path: Path, records: Iterator[Document]) -> None:
    # The published files escape slashes; a reader must not care.
    lines = [json.dumps(record, separators=(",", ":")).replace("/", "\\/") for record in records]
    path.write_text("".join(f"{line}\n" for line in lines))


def _write_overview(folder: Path, images: list[Document]) -> None:
    """Every eighth image is absent, and the list names images that the dataset does not have."""
    with (folder / "images_overview.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Type", "U_id", "ID_Image", "Img_Large", "URL_Article_image"])
        for index, image in enumerate(images):
            name = "MPX9999_synpic1" if index % 8 == 0 else image["image"]
            kind = {"CT": "TAC", "MR": "MRI"}[image["Type"]]
            address = f"https://openi.nlm.nih.gov//imgs/512/{name}.png"
            rows.writerow([kind, image["U_id"], name, address, f"https://medpix.nlm.nih.gov/case?id={index}"])


def _draw(rng: random.Random, image: Document) -> Image.Image:
    """A body outline whose rim is bright in CT (bone) and whose inside is bright in MR (water)."""
    width, height = rng.randint(64, 160), rng.randint(64, 160)
    picture = Image.new("L", (width, height), rng.randint(0, 8))
    draw = ImageDraw.Draw(picture)
    left, top = rng.randint(2, 10), rng.randint(2, 10)
    box = (left, top, width - left, height - top)
    rim, inside = (250, 90) if image["Type"] == "CT" else (30, 190)
    place = [name for name, _, _ in _PLACES].index(image["Location"]) if image["Location"] in _NAMES else 0
    draw.ellipse(box, fill=inside, outline=rim, width=5)
    for step in range(place + 1):
        x = left + 10 + step * (width - 30) // 8
        draw.rectangle((x, height // 2 - 6, x + 4, height // 2 + 6), fill=255 - inside)
    draw.text((3, height - 12), "c0ffee, Uploader", fill=255)
    mode = _MODES[rng.randrange(len(_MODES))]
    return picture.convert("RGB").convert("P") if mode == "P" else picture.convert(mode)


_NAMES = frozenset(name for name, _, _ in _PLACES)
