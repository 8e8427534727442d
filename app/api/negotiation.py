"""Accept and Accept-Encoding headers (RFC 9110, section 12.5)."""


def accepts(header: str, name: str) -> float:
    """The quality value that a header gives a media type or content coding that it names, from 0 to 1.

    Wildcards name none and count as 0.
    """
    for item in header.split(","):
        offered, *parameters = (part.strip().lower() for part in item.split(";"))
        if offered == name:
            weights = [part[2:] for part in parameters if part.startswith("q=")]
            try:
                return float(weights[0]) if weights else 1.0
            except ValueError:
                return 0.0
    return 0.0
