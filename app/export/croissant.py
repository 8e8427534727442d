"""Croissant metadata (MLCommons, version 1.0): what the exported tables hold, for programs to read."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from app.data.fields import Field

Document = dict[str, Any]

CONFORMS_TO: Final = "http://mlcommons.org/croissant/1.0"
_CR_TERMS: Final = (
    *("column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty", "fileSet", "format"),
    *("includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex"),
    *("repeated", "replace", "samplingRate", "separator", "source", "subField", "transform"),
)
_CONTEXT: Final[Document] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "citeAs": "cr:citeAs",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{term: f"cr:{term}" for term in _CR_TERMS},
}
_CITATION: Final = (
    "@article{medpix2, title={MedPix 2.0: A Comprehensive Multimodal Biomedical Data set for Advanced AI "
    "Applications}, journal={arXiv:2407.02994}, year={2024}}"
)
_DESCRIPTION: Final = (
    "The clinical cases and CT and MR images of MedPix 2.0 as this service has them: values normalised, "
    "unknown values null. For research and teaching, not for diagnosis. The data have their own terms."
)


class Table(NamedTuple):
    """An exported JSON Lines table.

    Attributes:
        name: images or cases.
        fields: by column name.
        address: absolute address of the export.
        sha256: of its bytes.
        size: of it in bytes.
    """

    name: str
    fields: Mapping[str, Field]
    address: str
    sha256: str
    size: int


def describe(tables: list[Table], *, home: str, dataset_version: str, published: str) -> Document:
    """The metadata document.

    Args:
        tables: what can be downloaded.
        home: address of the service.
        dataset_version: of the seeded data.
        published: day of the seeding, YYYY-MM-DD.
    """
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": "MedPix-2.0",
        "description": _DESCRIPTION,
        "conformsTo": CONFORMS_TO,
        "citeAs": _CITATION,
        "url": home,
        "version": f"2.0.0+{dataset_version}",
        "datePublished": published,
        "distribution": [_file(table) for table in tables],
        "recordSet": [_record_set(table) for table in tables],
    }


def _file(table: Table) -> Document:
    name = f"{table.name}.jsonl"
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": table.address,
        "contentSize": f"{table.size} B",
        "encodingFormat": "application/jsonlines",
        "sha256": table.sha256,
    }


def _record_set(table: Table) -> Document:
    fields = []
    for name, field in table.fields.items():
        described: Document = {
            "@type": "cr:Field",
            "@id": f"{table.name}/{name}",
            "name": name,
            "description": field.about,
            "dataType": "sc:Integer" if field.kind == "integer" else "sc:Text",
            "source": {"fileObject": {"@id": f"{table.name}.jsonl"}, "extract": {"column": name}},
        }
        if field.kind == "list":
            described["repeated"] = True
        fields.append(described)
    key = "image" if table.name == "images" else "u_id"
    return {
        "@type": "cr:RecordSet",
        "@id": table.name,
        "name": table.name,
        "key": {"@id": f"{table.name}/{key}"},
        "field": fields,
    }
