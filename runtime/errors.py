"""What can go wrong, as types a caller can catch; each message names the input and says what to do."""


class HeedfulError(Exception):
    """Base of every error Heedful raises on purpose."""


class InputError(HeedfulError, ValueError):
    """What the caller passed in (audio, an option) cannot be used."""


class BundleError(HeedfulError):
    """A bundle is missing, altered, of another version, or not a bundle."""


class OutdatedBundleError(BundleError):
    """A bundle is of a format from before this version's: exporting it again replaces it."""


class CheckpointError(HeedfulError):
    """A checkpoint is missing, incomplete, of an unknown family or in an unsafe format."""


class FetchError(HeedfulError):
    """Weights or samples could not be fetched, or their checksum is wrong."""


class ExportError(HeedfulError):
    """A checkpoint could not be exported, or its export failed verification."""


class DeviceError(HeedfulError):
    """The device asked for is not to be had, or is another process's."""


class BusyError(HeedfulError):
    """More requests are waiting than the queue holds."""
