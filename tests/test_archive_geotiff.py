"""A GeoTIFF that is written here reads back as the same image, by our decoder and by GDAL."""

import warnings
from itertools import product

import numpy as np
import pytest
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from curation.archive.geotiff import encode_geotiff
from curation.archive.place import Georeference
from curation.archive.sample import Image
from curation.archive.tiff import decode_tiff
from curation.errors import BadSample

PLACES = {
    "nowhere": None,
    "UTM": Georeference("EPSG:32633", (10.0, 0.0, 5e5, 0.0, -10.0, 4.1e6)),
    "degrees": Georeference("EPSG:4326", (1e-4, 0.0, 7.1, 0.0, -1e-4, 47.3)),
    "turned": Georeference("EPSG:32633", (10.0, 1.0, 5e5, 1.0, -10.0, 4.1e6)),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"])
def test_it_comes_back_as_it_was(dtype, place):
    draw = np.random.default_rng(0)
    for bands, masked in product((1, 3, 4, 13), (False, True)):
        pixels = (draw.random((bands, 16, 20)) * 120).astype(dtype)
        mask = draw.random((16, 20)) > 0.3 if masked else None
        nodata = None if dtype == "int8" else 0.0 if bands % 2 else 7.0
        image = Image(pixels, tuple(f"B{i}" for i in range(bands)), mask, nodata, PLACES[place])
        data = encode_geotiff(image)
        assert data == encode_geotiff(image)
        back = decode_tiff(data, 1 << 20)
        assert back is not None
        assert back.pixels.dtype == pixels.dtype and np.array_equal(back.pixels, pixels)
        assert (back.bands, back.nodata, back.place) == (image.bands, nodata, image.place)
        assert mask is None if back.mask is None else np.array_equal(back.mask, mask)
        with warnings.catch_warnings(), MemoryFile(data) as file:
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with file.open() as theirs:
                assert np.array_equal(theirs.read(), pixels)
                assert theirs.descriptions == image.bands
                assert theirs.nodata == nodata
                if image.place is not None:
                    assert theirs.crs.to_string() == image.place.crs
                    assert tuple(theirs.transform)[:6] == image.place.transform
                if mask is not None:
                    assert np.array_equal(theirs.dataset_mask() > 0, mask)


def test_what_a_tiff_cannot_hold_is_refused():
    with pytest.raises(BadSample, match="cannot hold complex64"):
        encode_geotiff(Image(np.zeros((1, 4, 4), np.complex64), ("b1",)))
