"""Classifies pictures with any classifier that a server has: one picture in, one list of scores out.

    python image_client.py [-m MODEL] [-u HOST:PORT] [-c CLASSES] [-s SCALING] [PICTURE …]

The picture's size and layout come from the model's metadata and configuration. For each picture it prints the best
classes as ``score (index) = LABEL``. Without a picture it takes scikit-image's photograph of a cup of coffee.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy
import tritonclient.http
import tritonclient.utils
from PIL import Image

# How pixels of 0 to 255 become what the network was trained on. EfficientNet-Lite uses INCEPTION's scale.
SCALINGS = ("NONE", "INCEPTION", "VGG")
VGG_CHANNEL_MEANS = (123.0, 117.0, 104.0)
# Share of the shorter side that is cut out around the centre before scaling to the model's size.
CENTRE_SHARE = 224 / (224 + 32)


class PictureInput:
    """What a model wants to be given, from its metadata and configuration (``--model``'s one input)."""

    def __init__(self, metadata: dict[str, Any], config: dict[str, Any]) -> None:
        if len(metadata["inputs"]) != 1 or len(metadata["outputs"]) != 1:
            raise SystemExit("the model must have one input, the picture, and one output, the scores")
        self.name = metadata["inputs"][0]["name"]
        self.datatype = metadata["inputs"][0]["datatype"]
        self.output = metadata["outputs"][0]["name"]
        self.largest_batch = max(1, int(config["max_batch_size"]))
        self.has_batch_dimension = int(config["max_batch_size"]) > 0
        dims = [int(dim) for dim in config["input"][0]["dims"]]
        if len(dims) != 3:
            raise SystemExit(f"the input {self.name} must have three dimensions besides the batch, not {dims}")
        layout = config["input"][0]["format"]
        self.channels_first = layout == "FORMAT_NCHW" or (layout == "FORMAT_NONE" and dims[0] in (1, 3))
        self.channels, self.height, self.width = dims if self.channels_first else (dims[2], dims[0], dims[1])

    def prepare(self, picture: Image.Image, scaling: str) -> numpy.ndarray:
        """Cut, resize, scale and lay out a picture: [C, H, W] or [H, W, C], in the model's datatype."""
        picture = picture.convert("L" if self.channels == 1 else "RGB")
        side = int(min(picture.size) * CENTRE_SHARE)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
        picture = picture.resize((self.width, self.height), Image.Resampling.BICUBIC)
        pixels = numpy.asarray(picture, dtype=numpy.float32).reshape(self.height, self.width, self.channels)
        if scaling == "INCEPTION":
            pixels = pixels / 127.5 - 1
        elif scaling == "VGG":
            pixels = pixels - numpy.array(VGG_CHANNEL_MEANS[: self.channels], dtype=numpy.float32)
        if self.channels_first:
            pixels = pixels.transpose(2, 0, 1)
        # asarray would keep the transposed strides; what is sent is the memory as it lies
        return numpy.ascontiguousarray(pixels, dtype=tritonclient.utils.triton_to_np_dtype(self.datatype))


def load_pictures(paths: Sequence[str]) -> list[tuple[str, Image.Image]]:
    if paths:
        return [(path, Image.open(path)) for path in paths]
    import skimage.data

    return [("coffee (scikit-image)", Image.fromarray(skimage.data.coffee()))]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Classifies pictures with a classifier that a server has.")
    parser.add_argument("-m", "--model", default="image_classifier")
    parser.add_argument("-u", "--url", default="localhost:8000", help="host:port of the server")
    parser.add_argument("-c", "--classes", type=int, default=3, help="how many classes to print")
    parser.add_argument("-s", "--scaling", choices=SCALINGS, default="INCEPTION", help="of the pixels")
    parser.add_argument("pictures", nargs="*", help="picture files (default: a cup of coffee)")
    options = parser.parse_args(arguments)

    client = tritonclient.http.InferenceServerClient(options.url)
    wanted = PictureInput(client.get_model_metadata(options.model), client.get_model_config(options.model))
    pictures = load_pictures(options.pictures)
    step = wanted.largest_batch
    for start in range(0, len(pictures), step):
        names = [name for name, _ in pictures[start : start + step]]
        tensors = [wanted.prepare(picture, options.scaling) for _, picture in pictures[start : start + step]]
        batch = numpy.stack(tensors) if wanted.has_batch_dimension else tensors[0]
        tensor = tritonclient.http.InferInput(wanted.name, batch.shape, wanted.datatype)
        tensor.set_data_from_numpy(batch)
        output = tritonclient.http.InferRequestedOutput(wanted.output, class_count=options.classes)
        answer = client.infer(options.model, [tensor], outputs=[output]).as_numpy(wanted.output)
        for name, row in zip(names, answer.reshape(len(names), -1), strict=True):
            print(f"{name}:")
            for element in row:
                # b"score:index" or b"score:index:label"
                score, index, *label = element.decode().split(":", 2)
                print(f"    {float(score):f} ({index}) = {label[0] if label else ''}")
    client.close()


if __name__ == "__main__":
    try:
        main()
    except (OSError, tritonclient.utils.InferenceServerException) as error:
        raise SystemExit(f"image_client: {error}") from error
