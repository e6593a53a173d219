"""Answers of S3 and Cloud Storage that refuse: XML with a code."""

from xml.sax.saxutils import escape

from tests.support.quick_http import Reply

_CODE_TO_ANSWER = {
    "AccessDenied": (403, "Access Denied"),
    "AllAccessDisabled": (403, "All access to this object has been disabled"),
    "AuthenticationRequired": (401, "Authentication required."),
    "AuthorizationHeaderMalformed": (400, "The authorization header is malformed"),
    "EntityTooSmall": (400, "Your proposed upload is smaller than the minimum size"),
    "ExpiredToken": (400, "The provided token has expired."),
    "InvalidAccessKeyId": (
        403,
        "The AWS Access Key Id you provided does not exist in our records.",
    ),
    "InvalidPart": (400, "One or more of the specified parts could not be found."),
    "InvalidRange": (416, "The requested range is not satisfiable"),
    "InvalidToken": (400, "The provided token is malformed or otherwise invalid."),
    "NoSuchBucket": (404, "The specified bucket does not exist"),
    "NoSuchKey": (404, "The specified key does not exist."),
    "NoSuchUpload": (404, "The specified upload does not exist."),
    "NotImplemented": (501, "A header you provided implies what is not implemented."),
    "PermanentRedirect": (
        301,
        "The bucket you are attempting to access must be addressed using the"
        " specified endpoint.",
    ),
    "PreconditionFailed": (
        412,
        "At least one of the pre-conditions you specified did not hold",
    ),
    "RequestTimeTooSkewed": (
        403,
        "The difference between the request time and the current time is too large.",
    ),
    "SignatureDoesNotMatch": (
        403,
        "The request signature we calculated does not match the signature you provided."
        " Check your key and signing method.",
    ),
    "SlowDown": (503, "Please reduce your request rate."),
    "UserProjectMissing": (
        400,
        "Bucket is a requester pays bucket but no user project provided.",
    ),
}


def error(code: str, headers: dict[str, str] | None = None, **fields: str) -> Reply:
    """The answer with a code; `fields` are further elements, such as `Region`."""
    status, message = _CODE_TO_ANSWER[code]
    elements = {"Code": code, "Message": message, **fields, "RequestId": "4442587FB7"}
    inside = "".join(
        f"<{name}>{escape(value)}</{name}>" for name, value in elements.items()
    )
    return xml_reply(f"<Error>{inside}</Error>", status, headers)


def xml_reply(
    content: str, status: int = 200, headers: dict[str, str] | None = None
) -> Reply:
    """A document."""
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{content}'.encode()
    return Reply(status, body, {"Content-Type": "application/xml", **(headers or {})})
