"""Boxes of the vision tower on real pictures, at the sizes of published checkpoints, to be looked at.

    python benchmarks/real_maps.py FOLDER OUT [--architectures llava-next,internvl,...] [--pictures 4] [--seed 0]

Models are random and narrow, with processors, tiles and patches of the published sizes, so that nothing is fetched. Of
every picture a PNG is written: at the left the picture with the boxes of some patches, at the right what the tower is
given of each beside what its box cuts from the picture, which must look alike. Printed is how alike, for all patches of
the picture that its end does not cut and that have some contrast: the correlation of grey values, its median and what
1 % are below, and the share of patches that look more like what a box half a patch to the right cuts.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import models
import newer_models
import numpy
import tiny_models
import torch
import transformers
from PIL import Image, ImageDraw
from torch import Tensor

from mmneuron_lens import Batch, Lens

CONTRAST = 8.0
"""Standard deviation of grey values, of 255, below which a patch says nothing of its place."""

SEEN = 84
"""Pixels of a patch, as it is shown."""

COLOURS = ("#ff2020", "#ffd000", "#00e060", "#20a0ff", "#ff40ff", "#ff9020")

OTHERS = {"max_position_embeddings": 32768}


def resized(made: Any, given: Any, pixels: Any, vision: dict[str, Any], **own: Any) -> Lens:
    """A tiny model with another image processor and sizes of the tower. own: of configuration or processor."""
    config, processor = copy.deepcopy(made.config), copy.deepcopy(given)
    config.text_config.update(OTHERS)
    config.vision_config.update({**vision, **({"num_hidden_layers": 1} if "depth" not in vision else {})})
    for name, value in own.items():
        for holder in (config, processor):
            if hasattr(holder, name):
                setattr(holder, name, value)
    processor.image_processor = pixels
    if hasattr(processor, "patch_size"):
        processor.patch_size = vision["patch_size"]
    return Lens.wrap(type(made)(config).eval(), processor)


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def llava_next() -> Lens:
    pixels = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": 336}, crop_size=square(336), image_grid_pinpoints=models.GRID
    )
    sizes = {"image_size": 336, "patch_size": 14}
    return resized(*tiny_models.llava_next(), pixels, sizes, image_grid_pinpoints=models.GRID)


def llava() -> Lens:
    pixels = transformers.CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=square(336))
    return resized(*tiny_models.llava(), pixels, {"image_size": 336, "patch_size": 14})


def llava_onevision() -> Lens:
    grid = [[down * 384, across * 384] for down in range(1, 7) for across in range(1, 7)]
    pixels = transformers.LlavaOnevisionImageProcessorPil(size=square(384), image_grid_pinpoints=grid)
    own = {"image_grid_pinpoints": grid, "vision_aspect_ratio": "anyres_max_9", "num_image_tokens": 729}
    return resized(*newer_models.llava_onevision(), pixels, {"image_size": 384, "patch_size": 14}, **own)


def internvl() -> Lens:
    pixels = transformers.GotOcr2ImageProcessorPil(
        size=square(448), crop_to_patches=True, min_patches=1, max_patches=12
    )
    sizes = {"image_size": [448, 448], "patch_size": [14, 14]}
    return resized(*newer_models.internvl(), pixels, sizes, image_seq_length=256)


def idefics3() -> Lens:
    pixels = transformers.Idefics3ImageProcessorPil(size={"longest_edge": 1456}, max_image_size={"longest_edge": 364})
    return resized(*newer_models.idefics3(), pixels, {"image_size": 364, "patch_size": 14}, image_seq_len=169)


def smolvlm() -> Lens:
    pixels = transformers.SmolVLMImageProcessorPil(size={"longest_edge": 1536}, max_image_size={"longest_edge": 384})
    sizes = {"image_size": 384, "patch_size": 14}
    return resized(*newer_models.smolvlm(), pixels, sizes, image_seq_len=81, scale_factor=3)


def qwen(name: str) -> Callable[[], Lens]:
    def made() -> Lens:
        pixels = transformers.Qwen2VLImageProcessorPil(
            patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=4 * 28 * 28, max_pixels=1280 * 28 * 28
        )
        windows = {"window_size": 112} if name == "qwen2_5_vl" else {}
        sizes = {"patch_size": 14, "depth": newer_models.VISION_LAYERS, **windows}
        return resized(*getattr(newer_models, name)(), pixels, sizes)

    return made


def mistral3() -> Lens:
    pixels = transformers.PixtralImageProcessorPil(size={"longest_edge": 1540}, patch_size=square(28))
    return resized(*newer_models.mistral3(), pixels, {"image_size": 1540, "patch_size": 14})


def gemma3() -> Lens:
    pixels = transformers.Gemma3ImageProcessorPil(size=square(896), do_pan_and_scan=False)
    made, given = newer_models.gemma3()
    anew = newer_models.processor_of("Gemma3Processor", pixels, given.tokenizer, image_seq_length=256)
    return resized(made, anew, pixels, {"image_size": 896, "patch_size": 14}, mm_tokens_per_image=256)


def deepseek_vl() -> Lens:
    pixels = transformers.DeepseekVLImageProcessorPil(size=square(384), min_size=14)
    return resized(*newer_models.deepseek_vl(), pixels, {"image_size": 384, "patch_size": 16}, num_image_tokens=576)


def instructblip() -> Lens:
    pixels = transformers.BlipImageProcessorPil(size=square(224))
    return resized(*tiny_models.instructblip(), pixels, {"image_size": 224, "patch_size": 14})


ARCHITECTURES: dict[str, Callable[[], Lens]] = {
    "llava-next": llava_next,
    "llava": llava,
    "llava-onevision": llava_onevision,
    "internvl": internvl,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "qwen2-vl": qwen("qwen2_vl"),
    "qwen2.5-vl": qwen("qwen2_5_vl"),
    "mistral3": mistral3,
    "gemma3": gemma3,
    "deepseek-vl": deepseek_vl,
    "instructblip": instructblip,
}


def given_to_the_tower(batch: Batch) -> Iterator[Tensor | None]:
    """Of every position of a batch of one picture its patch of pixels `[3, patch, patch]`; None of a CLS token."""
    pixels, facts, size = batch.inputs["pixel_values"].float(), batch.facts, batch.facts["patch_size"]
    if facts["tiling"] == "grid":
        yield from pixels.view(len(pixels), 3, 2, size, size)[:, :, 0]
        return
    for tile in pixels.flatten(0, -4):
        if not facts["patches"]:
            high, wide = (int(side) for side in batch.inputs["image_sizes"][0] // size)
        else:
            high = wide = math.isqrt(facts["patches"])
            yield from [None] * facts["cls"]
        for row in range(high):
            for column in range(wide):
                yield tile[:, row * size : (row + 1) * size, column * size : (column + 1) * size]


def grey(patch: Tensor, processor: Any) -> numpy.ndarray:
    """Pixels that a tower is given, as grey values from 0 to 255."""
    spread, middle = torch.tensor(processor.image_std), torch.tensor(processor.image_mean)
    shown = (patch * spread[:, None, None] + middle[:, None, None]) * 255
    return shown.mean(0).numpy()


def cut(picture: Image.Image, box: list[float], size: int) -> numpy.ndarray:
    """What a box cuts from a picture, as grey values, at the size of a patch."""
    part = picture.resize((size, size), Image.Resampling.BICUBIC, box=tuple(box), reducing_gap=None)
    return numpy.asarray(part, dtype=numpy.float32).mean(-1)


def alike(one: numpy.ndarray, other: numpy.ndarray) -> float:
    return float(numpy.corrcoef(one.ravel(), other.ravel())[0, 1])


def whole(boxes: Tensor, facts: Any) -> list[int]:
    """Places of boxes that the end of the picture does not cut: as large as the largest of their tile."""
    size = (boxes[:, 3:] - boxes[:, 1:3]).nan_to_num(0)
    tiles = size.view(-1, facts["cls"] + facts["patches"] if facts["patches"] else len(size), 2)
    return (tiles > 0.999 * tiles.amax(1, keepdim=True)).all(-1).flatten().nonzero().flatten().tolist()


def compared(picture: Image.Image, batch: Batch, chosen: int, drawing: Any) -> tuple[str, list[tuple[int, Any, Any]]]:
    """How alike patches and boxes are, in words; and some places, each with its patch and what its box cuts."""
    boxes, size = batch.tower_boxes(), batch.facts["patch_size"]
    patches = list(given_to_the_tower(batch))
    if len(patches) != len(boxes):
        return f"{len(patches)} patches and {len(boxes)} boxes", []
    found, places = [], whole(boxes, batch.facts)
    for place in places:
        seen = grey(patches[place], batch.image_processor)  # type: ignore[arg-type]
        box = boxes[place, 1:].tolist()
        if seen.std() >= CONTRAST:
            own = cut(picture, box, size)
            width = box[2] - box[0]
            beside = [box[0] + width / 2, box[1], box[2] + width / 2, box[3]]
            shifted = alike(seen, cut(picture, beside, size)) if beside[2] <= picture.width else -1.0
            found.append((alike(seen, own) if own.std() else 0.0, shifted, place, seen, own))
    if not found:
        return "no patch with contrast", []
    scores = numpy.array([one for one, *_ in found])
    worse = float(numpy.mean([one < beside for one, beside, *_ in found]))
    says = (
        f"{len(found):6d} patches, correlation {numpy.median(scores):.3f}, 1 % below {numpy.quantile(scores, 0.01):.3f}"
    )
    shown = [found[one] for one in drawing.choice(len(found), min(chosen, len(found)), replace=False)]
    return f"{says}, {worse:.2%} better half a box to the right", [(place, seen, own) for *_, place, seen, own in shown]


def drawn(picture: Image.Image, batch: Batch, shown: list[tuple[int, Any, Any]]) -> Image.Image:
    """The picture with boxes on it; beside it what the tower is given of each, and what each cuts."""
    boxes = batch.tower_boxes()
    page = Image.new("RGB", (picture.width + 2 * SEEN + 24, max(picture.height, (SEEN + 8) * len(shown))), "white")
    page.paste(picture)
    canvas = ImageDraw.Draw(page)
    for line, (place, seen, own) in enumerate(shown):
        colour = COLOURS[line % len(COLOURS)]
        canvas.rectangle(boxes[place, 1:].tolist(), outline=colour, width=2)
        top = line * (SEEN + 8) + 2
        for column, values in enumerate((seen, own)):
            patch = Image.fromarray(values.clip(0, 255).astype("uint8")).resize((SEEN, SEEN), Image.Resampling.NEAREST)
            left = picture.width + 8 + column * (SEEN + 8)
            page.paste(patch, (left, top))
            canvas.rectangle((left - 2, top - 2, left + SEEN + 1, top + SEEN + 1), outline=colour, width=2)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--architectures", default=",".join(ARCHITECTURES))
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    files = sorted(file for kind in ("jpg", "png") for file in given.folder.rglob(f"*.{kind}"))
    drawing = numpy.random.default_rng(given.seed)
    files = [files[one] for one in drawing.permutation(len(files))[: given.pictures]]
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.architectures.split(","):
        lens = ARCHITECTURES[name]()
        for file in files:
            picture = Image.open(file).convert("RGB")
            batch = lens.encode([picture], ["what is it?"])
            says, shown = compared(picture, batch, 6, drawing)
            print(f"{name:16} {file.stem[:24]:24} {picture.width:4d} x {picture.height:4d}: {says}", flush=True)
            drawn(picture, batch, shown).save(given.out / f"{name}-{file.stem}.png")


if __name__ == "__main__":
    main()
