"""The papers behind what a recipe does, in one place: data, and which of them a recipe uses."""

from __future__ import annotations

from dataclasses import dataclass

from variegate.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Citation:
    """One paper; `arxiv` is its number there."""

    key: str
    authors: str
    title: str
    year: int
    arxiv: str

    def bibtex(self) -> str:
        fields = {"title": self.title, "author": self.authors, "year": str(self.year), "eprint": self.arxiv}
        lines = [f"  {name} = {{{value}}}," for name, value in (*fields.items(), ("archivePrefix", "arXiv"))]
        return "\n".join([f"@misc{{{self.key},", *lines, "}"])


PAPERS = {
    paper.key: paper
    for paper in (
        Citation(
            "sdedit",
            "Meng and others",
            "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations",
            2021,
            "2108.01073",
        ),
        Citation("lora", "Hu and others", "LoRA: Low-Rank Adaptation of Large Language Models", 2021, "2106.09685"),
        Citation(
            "textual-inversion",
            "Gal and others",
            "An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion",
            2022,
            "2208.01618",
        ),
        Citation(
            "dreambooth",
            "Ruiz and others",
            "DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation",
            2022,
            "2208.12242",
        ),
        Citation(
            "real-guidance",
            "He and others",
            "Is Synthetic Data from Generative Models Ready for Image Recognition?",
            2022,
            "2210.07574",
        ),
        Citation(
            "diffedit",
            "Couairon and others",
            "DiffEdit: Diffusion-based semantic image editing with mask guidance",
            2022,
            "2210.11427",
        ),
        Citation(
            "instruct-pix2pix",
            "Brooks and others",
            "InstructPix2Pix: Learning to Follow Image Editing Instructions",
            2022,
            "2211.09800",
        ),
        Citation(
            "da-fusion", "Trabucco and others", "Effective Data Augmentation With Diffusion Models", 2023, "2302.07944"
        ),
        Citation(
            "diff-mix",
            "Wang and others",
            "Enhance Image Classification via Inter-Class Image Mixup with Diffusion Model",
            2024,
            "2403.19600",
        ),
        Citation(
            "diffusemix",
            "Islam and others",
            "DiffuseMix: Label-Preserving Data Augmentation with Diffusion Models",
            2024,
            "2405.14881",
        ),
        Citation(
            "diagen",
            "Lingenberg and others",
            "DIAGen: Diverse Image Augmentation with Generative Models",
            2024,
            "2408.14584",
        ),
    )
}


def papers_of(recipe: Recipe) -> list[Citation]:
    """What a recipe's synthetic images come from, oldest first.

    >>> [paper.key for paper in papers_of(Recipe())]
    ['sdedit', 'real-guidance']
    """
    generate, adapt = recipe.generate, recipe.adapt
    operations = {step.op for step in recipe.refine}
    uses = {
        "sdedit": generate.from_image,
        "lora": adapt.has_lora,
        "textual-inversion": adapt.has_tokens,
        "dreambooth": adapt.prior.images > 0,
        "real-guidance": generate.method == "real-aug",
        "diffedit": generate.mask_from == "model",
        "instruct-pix2pix": generate.method == "edit",
        "da-fusion": generate.method == "ti-aug" or generate.compose == "sequential",
        "diff-mix": generate.method.endswith("-mix") or generate.method.startswith("diff-"),
        "diffusemix": bool(operations & {"concat"}),
        "diagen": bool(generate.token_noise.std)
        or any(s.score != "copy" and s.policy == "weight" for s in recipe.curate),
    }
    return [paper for key, paper in PAPERS.items() if uses[key]]
