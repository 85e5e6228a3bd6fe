"""
Tone mapping: from pictures of high dynamic range to those of an ordinary screen.

What a frame stores is light by one of two transfer functions, in the wide primaries of BT.2020: PQ (SMPTE ST 2084), in
absolute terms, or HLG (ARIB STD-B67); both are in ITU-R BT.2100. The steps are light -> tone curve -> primaries of
BT.709 -> inverse of BT.1886. Nothing is adapted to the clip: light of 203 cd/m2, the reference white of ITU-R BT.2408,
is what the screen's white shows, and the tone curve of ITU-R BT.2390, 5.4 brings light of up to 1000 cd/m2 below it;
beyond 1000, all is white. In docstrings H and W are height and width.
"""

from functools import cache

import numpy as np

# FFmpeg's numbers (ISO/IEC 23091-2).
_PQ, _HLG = 16, 18
HDR_TRANSFERS = (_PQ, _HLG)
_LUMA = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114)}  # of red and blue, by `colorspace`
_LUMA_BT2020 = (0.2627, 0.0593)
# (x, y) of red, green and blue, by `color_primaries`; white is D65.
_BT709, _BT2020, _P3 = 1, 9, 12
_PRIMARIES = {
    _BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    _BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    _P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
_D65 = (0.3127, 0.3290)
_SOURCE_PEAK, _WHITE = 1000.0, 203.0  # cd/m2


def _pq_inverse(light: np.ndarray) -> np.ndarray:
    """Signal in [0, 1] of light in cd/m2 (ST 2084, 5.2)."""
    power = (np.asarray(light) / 10000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def _pq(signal: np.ndarray) -> np.ndarray:
    """Light in cd/m2 of a signal in [0, 1] (ST 2084, 5.1)."""
    root = np.asarray(signal) ** (32 / 2523)
    return 10000 * ((root - 3424 / 4096).clip(0) / (2413 / 128 - 2392 / 128 * root)) ** (16384 / 2610)


def _hlg(signal: np.ndarray) -> np.ndarray:
    """Light of the scene in [0, 1] of a signal in [0, 1] (BT.2100, table 5: inverse of the OETF)."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def _tone_curve(light: np.ndarray) -> np.ndarray:
    """Light below `_WHITE` for light in cd/m2 (BT.2390, 5.4.1, of black 0)."""
    peak = _pq_inverse(np.array(_SOURCE_PEAK))
    signal, white = (_pq_inverse(light) / peak).clip(0, 1), _pq_inverse(np.array(_WHITE)) / peak
    knee = 1.5 * white - 0.5
    t = (signal - knee) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * white
    return _pq(np.where(signal < knee, signal, spline) * peak)


def _to_xyz(primaries: int) -> np.ndarray:
    """(3, 3), from RGB to XYZ."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in _PRIMARIES[primaries]]).T
    x, y = _D65
    return columns * np.linalg.solve(columns, [x / y, 1, (1 - x - y) / y])


@cache
def _tables(transfer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    Light of 4096 signals; factors by which to lower light, and the lights in cd/m2 of which they are; 8 bits of 65536
    lights.
    """
    signals = np.linspace(0, 1, 4096)
    light = _pq(signals) if transfer == _PQ else _hlg(signals)
    grid = np.geomspace(1e-3, 10000, 2048)
    screen = np.rint(255 * np.linspace(0, 1, 1 << 16) ** (1 / 2.4))
    return light.astype(np.float32), _tone_curve(grid) / grid, grid, screen.astype(np.uint8)


def yuv_to_rgb(planes: np.ndarray, bits: int, colorspace: int, is_full_range: bool) -> np.ndarray:
    """RGB signals in [0, 1], (H, W, 3), of `planes` (3, H, W), Y, Cb and Cr of `bits` bits (BT.2100, tables 6, 9)."""
    red, blue = _LUMA.get(colorspace, _LUMA_BT2020)
    step = np.float32(1 << (bits - 8))
    top = np.float32((1 << bits) - 1)
    middle = np.float32(1 << (bits - 1))
    y = planes[0] / top if is_full_range else (planes[0] - 16 * step) / (219 * step)
    cb, cr = ((plane - middle) / (top if is_full_range else 224 * step) for plane in planes[1:].astype(np.float32))
    r, b = y + np.float32(2 * (1 - red)) * cr, y + np.float32(2 * (1 - blue)) * cb
    g = (y - np.float32(red) * r - np.float32(blue) * b) / np.float32(1 - red - blue)
    return np.stack([r, g, b], axis=-1).clip(0, 1)


def tone_map(rgb: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """
    Args:
        rgb (`np.ndarray`): (H, W, 3) signals in [0, 1].
        transfer (`int`): one of `HDR_TRANSFERS`.
        primaries (`int`): FFmpeg's number; BT.2020 where it is another than that of BT.709 and P3.

    Returns:
        (H, W, 3) uint8 of BT.709.
    """
    light_of_signal, factors, lights, screen = _tables(transfer)
    light = light_of_signal[np.rint(rgb * (len(light_of_signal) - 1)).astype(np.uint16)]
    if transfer == _HLG:  # BT.2100, table 5: the OOTF of a screen of 1000 cd/m2
        luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light = light * (_SOURCE_PEAK * luminance[..., None] ** np.float32(0.2))
    # All three by the factor of the largest, so that hues stay.
    light = light * np.interp(light.max(-1), lights, factors)[..., None].astype(np.float32)
    to_bt709 = np.linalg.solve(_to_xyz(_BT709), _to_xyz(primaries if primaries in _PRIMARIES else _BT2020)) / _WHITE
    light = light @ to_bt709.T.astype(np.float32)
    return screen[np.rint(light.clip(0, 1) * (len(screen) - 1)).astype(np.uint16)]


__all__ = ["HDR_TRANSFERS", "tone_map", "yuv_to_rgb"]
