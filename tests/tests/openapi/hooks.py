"""Bodies of media types that schemathesis does not write by itself: text, as generated."""

import schemathesis


@schemathesis.serializer("text/csv", "application/x-ndjson")
def write_text(_context, value):
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")
