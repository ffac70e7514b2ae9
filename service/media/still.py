"""How does one frame of a video become a picture to look at?"""

import cv2
import numpy as np

from service.media.planes import Pixels

CONTENT_TYPE = "image/jpeg"
_QUALITY = 90


def jpeg_of(pixels: Pixels, *, turned: int = 0) -> bytes:
    """Encode a frame as a JPEG, the right way up.

    Args:
        pixels: [H, W, 3] RGB, uint8, or uint16 over its whole range.
        turned: degrees, counter-clockwise, by which players turn the video's frames; a multiple of 90 is followed.
    """
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if turned % 90 == 0:
        pixels = np.rot90(pixels, turned // 90)
    done, encoded = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not done:
        raise OSError("a frame could not be encoded as JPEG")
    return encoded.tobytes()
