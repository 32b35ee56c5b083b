"""XML of others: read as elements and attributes, with no entities, no document types, nothing fetched."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

XML_BYTES = 1 << 22


def parse_xml(data: bytes) -> ElementTree.Element:
    """The root of a small document in UTF-8.

    Raises:
        ValueError: longer than ``XML_BYTES``, another encoding, or a document type, with which entities begin.
        ElementTree.ParseError: not XML.
    """
    if len(data) > XML_BYTES:
        raise ValueError(f"it has {len(data)} bytes, and {XML_BYTES} are allowed")
    text = data.decode("utf-8-sig")
    if "<!DOCTYPE" in text or "<!ENTITY" in text or "\0" in text:
        raise ValueError("it has a document type, which is not allowed")
    declared = text.lstrip()[:100].partition("?>")[0].lower()
    if "encoding" in declared and "utf-8" not in declared and "ascii" not in declared:
        raise ValueError("it is not in UTF-8")
    return ElementTree.fromstring(text if "encoding" not in declared else text.encode("utf-8"))
