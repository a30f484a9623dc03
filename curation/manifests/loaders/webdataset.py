"""The kept samples as WebDataset samples, for pipelines made of that library's stages."""

from collections.abc import Iterator
from typing import Any

from curation.manifests.loaders.decoded import Decoder
from curation.manifests.loaders.kept import Kept
from curation.manifests.loaders.stream import SampleStream


class WebDatasetSamples(SampleStream):
    """Dicts of ``__key__``, ``__url__``, ``__meta__`` (the manifest's columns) and the files' bytes by suffix.

    The first stage of a pipeline, in the place of shards, splitting and shuffling::

        wds.DataPipeline(WebDatasetSamples(URL), wds.decode("pil"), wds.to_tuple("jpg", "__meta__"))

    The files of a tile are its image's; ``__meta__["window"]`` says where in it the tile lies.

    Needs neither webdataset nor torch. Arguments: see :class:`SampleStream`.
    """

    def __call__(self) -> Iterator[dict[str, Any]]:
        """As a pipeline calls its first stage."""
        return iter(self)

    def convert(self, kept: Kept, decoder: Decoder) -> dict[str, Any]:
        """The sample as webdataset's tar reader would give it; suffixes in lower case."""
        files = {suffix.lower(): content for suffix, content in decoder.files(kept).items()}
        return {"__key__": kept.row["key"], "__url__": kept.url, "__meta__": kept.row, **files}
