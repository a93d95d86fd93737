"""Pictures side by side in one image: a page then holds each once."""

import base64
import io

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

ACROSS = 16  # tiles in a row of a sheet


def encode_sheet(pictures: UInt8[ndarray, "n c h w"]) -> str:
    """Put pictures in rows of ``ACROSS``, as a PNG in base64.

    Unless of three channels, the first one is shown in grey.
    """
    n, channels, height, width = pictures.shape
    shown = pictures if channels == 3 else pictures[:, :1]
    rows = -(-n // ACROSS)
    sheet = np.zeros((rows * ACROSS, *shown.shape[1:]), np.uint8)
    sheet[:n] = shown
    sheet = sheet.reshape(rows, ACROSS, -1, height, width).transpose(0, 3, 1, 4, 2)
    sheet = sheet.reshape(rows * height, ACROSS * width, -1)
    png = io.BytesIO()
    Image.fromarray(sheet[..., 0] if sheet.shape[2] == 1 else sheet).save(png, "PNG")
    return base64.b64encode(png.getvalue()).decode()
