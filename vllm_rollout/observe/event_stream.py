"""Server-sent events, as the WHATWG defines them, out of bytes that come in any pieces."""

_LONGEST_EVENT = 16 * 1024 * 1024
_FIELDS = (b"data", b"event", b"id", b"retry", b":")
_LONGEST_FIELD = 5
_SHOWN = 200
_BOM = b"\xef\xbb\xbf"


class NotAnEventStreamError(ValueError):
    """The bytes are something else (a web page, plain JSON), or an event without an end.

    `seen` are those that show it.
    """

    def __init__(self, message: str, seen: bytes | bytearray = b"") -> None:
        super().__init__(message)
        self.seen = seen


class EventStream:
    """Takes bytes in and gives the data of each event that they complete."""

    def __init__(self) -> None:
        self._begun = self._after_cr = False
        self._rest: list[bytes | bytearray] = []
        self._rest_length = self._data_length = 0
        self._data: list[bytes] = []

    @property
    def held(self) -> int:
        """Bytes of the event that is not whole yet."""
        return self._rest_length + self._data_length

    def feed(self, data: bytes | bytearray) -> list[bytes | bytearray]:
        """Take the next bytes; return the data of each event that they complete.

        Raises:
            NotAnEventStreamError: they are none.
        """
        cr = b"\r" in data or self._after_cr
        if self._begun and not cr and not self._rest_length and not self._data:
            # One whole event of one line is what comes as a rule, and worth a short cut.
            end = data.find(b"\n")
            if data.startswith(b"data: ") and end == len(data) - 2 and data.endswith(b"\n\n"):
                return [data[6:end]]
        if cr:
            data = self._with_newlines(data)
        self._rest.append(data)
        self._rest_length += len(data)
        if self.held > _LONGEST_EVENT:
            raise NotAnEventStreamError(f"an event of more than {_LONGEST_EVENT} bytes")
        if b"\n" not in data:
            return []
        lines = b"".join(self._rest).split(b"\n")
        self._rest = [lines.pop()]
        self._rest_length = len(self._rest[0])
        if not self._begun:
            self._begun = True
            lines[0] = lines[0].removeprefix(_BOM)
        events: list[bytes | bytearray] = []
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
                self._data_length += len(line)
            elif line:
                _check_field(line)
            elif self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
                self._data_length = 0
        return events

    def finish(self) -> None:
        """Check what is left when the body has ended.

        Raises:
            NotAnEventStreamError: it is no part of an event.
        """
        if self._rest_length >= _LONGEST_FIELD:
            _check_field(b"".join(self._rest))

    def _with_newlines(self, data: bytes | bytearray) -> bytes | bytearray:
        """The data with each line end, be it CR LF or CR alone, as a newline."""
        if not data:
            return data
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
        self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _check_field(line: bytes) -> None:
    if line and not line.startswith(_FIELDS):
        raise NotAnEventStreamError(f"not an event stream: {line[:_SHOWN]!r}", line)
