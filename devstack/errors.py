"""The one exception a person is meant to read: its text is a whole sentence that says what to do."""


class DevstackError(Exception):
    """Something that this machine lacks or that did not come up; shown without a traceback."""
