"""Learned tokens: every vector is trained and spoken, the vocabulary stays as it was, first values mean the class."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from adapting import draw_with, fit_of, learn, make_run, recipe_of, spec_of, trainee_of, values_of, views_of, weights

from variegate.backends.adapter import expand
from variegate.backends.diffusion import DiffusionBackend
from variegate.errors import ModelError
from variegate.stages.adapt.tokens import first_rows, token_names

CAPTION = "a photo of a <class_1>"


@pytest.fixture(params=["tiny_sd", "tiny_sdxl"])
def model(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


# ------------------------------------------------------------------------------------------ all vectors


def test_every_row_of_every_class_and_encoder_is_trained(model: Path) -> None:
    with trainee_of(model, method="tokens", vectors=3, gradient_checkpointing=True) as trainee:
        before = values_of(trainee)
        fit_of(trainee).run(3)
        for name, rows in trainee.token_parameters():
            moved = (rows.detach() - before[name]).abs().amax(dim=1)
            assert moved.shape == (9,) and (moved > 1e-4).all(), (name, moved)


def test_all_vectors_are_in_the_caption_when_training_as_when_drawing(model: Path, tmp_path: Path) -> None:
    with trainee_of(model, vectors=3) as trainee:
        names = token_names(trainee.placeholders, 3)
        assert names[3:6] == ["<class_1>", "<class_1>_1", "<class_1>_2"]
        for encoder in trainee.encoders:
            trained = encoder.token_ids(expand(CAPTION, trainee.vectors)).tolist()
            stock = trainee.pipe.maybe_convert_prompt(CAPTION, encoder.tokenizer)
            assert stock == f"{CAPTION} <class_1>_1 <class_1>_2"
            assert encoder.tokenizer(stock, padding="max_length", max_length=16)["input_ids"] == trained
            first = encoder.rows.base.num_embeddings
            assert [token - first for token in trained if token >= first] == [3, 4, 5]
    with make_run(tmp_path / "run") as folder:
        learn(folder, recipe_of(model, vectors=3))
    with DiffusionBackend.open(spec_of(model, tmp_path / "run/adapt")) as backend:
        assert backend.pipe.maybe_convert_prompt(CAPTION, backend.pipe.tokenizer) == stock


def test_captions_longer_than_ten_classes_do_not_collide() -> None:
    vectors = {f"<class_{k}>": 2 for k in range(12)}
    assert expand("<class_1> and <class_11>", vectors) == "<class_1> <class_1>_1 and <class_11> <class_11>_1"
    assert expand("<a>_1 <a>", {"<a>": 2, "<a>_1": 1}) == "<a>_1 <a> <a>_1"


def test_what_is_trained_is_told_exactly_what_drawing_tells(model: Path) -> None:
    """The same embedding from the trainee's own text code and from diffusers' encode_prompt."""
    with trainee_of(model, vectors=2) as trainee:
        with torch.no_grad(), trainee.computing(training=False):
            ours = trainee.encode([CAPTION])
        theirs = trainee.backend.encode_prompt(CAPTION)
        assert torch.allclose(ours.tokens[0], theirs.tokens, atol=1e-6)
        if theirs.pooled is not None:
            assert torch.allclose(ours.pooled[0], theirs.pooled, atol=1e-6)


def test_previews_say_every_vector_once(model: Path) -> None:
    said: list[list[int]] = []
    with trainee_of(model, vectors=2) as trainee:
        trainee.pipe.text_encoder.register_forward_pre_hook(
            lambda _module, args, kwargs: said.append((args or [kwargs["input_ids"]])[0][0].tolist()), with_kwargs=True
        )
        trainee.draw([CAPTION], [1])
        assert trainee.encoders[0].token_ids(f"{CAPTION} <class_1>_1").tolist() in said
        first = trainee.encoders[0].rows.base.num_embeddings
        assert max(sum(token >= first for token in ids) for ids in said) == 2


def test_words_behind_a_learned_token_are_summed_up_too(tiny_sdxl: Path, tmp_path: Path) -> None:
    """Published SDXL folders name eos_token_id 2, with which transformers sums a text up at its highest id."""
    import json
    import shutil

    model = shutil.copytree(tiny_sdxl, tmp_path / "model")
    for name in ("text_encoder", "text_encoder_2"):
        config = json.loads((model / name / "config.json").read_text())
        (model / name / "config.json").write_text(json.dumps(config | {"eos_token_id": 2}))
    short, long = CAPTION, f"{CAPTION} in the snow"
    with trainee_of(model, method="tokens") as trainee:
        text = trainee.encode([short, long])
        assert text.pooled is not None and not torch.allclose(text.pooled[0], text.pooled[1])
    with make_run(tmp_path / "run") as folder:
        learn(folder, recipe_of(model, method="tokens"))
    with DiffusionBackend.open(spec_of(model, tmp_path / "run/adapt")) as backend:
        first, second = (backend.encode_prompt(caption).pooled for caption in (short, long))
        assert first is not None and second is not None and not torch.allclose(first, second)


def test_text_encoder_lora_does_not_freeze_the_tokens(model: Path) -> None:
    with trainee_of(model, vectors=2, text_encoder_lora=True) as trainee:
        before = values_of(trainee)
        fit_of(trainee).run(3)
        moved = {name: not torch.equal(value, before[name]) for name, value in values_of(trainee).items()}
        unused = [name for name, changed in moved.items() if not changed]
        assert all(moved[name] for name, _ in trainee.token_parameters())
        assert any(moved[name] for name in moved if name.startswith("text_encoder."))
        assert not [
            name for name in unused if ".lora_B." in name and not name.startswith("text_encoder.encoder.layers.1")
        ]
        assert not unused or trainee.sdxl, "SDXL alone does not use its first encoder's last layer"


# ------------------------------------------------------------------------------------------ only what is learned


def test_the_vocabulary_never_changes_and_is_not_in_the_optimiser(model: Path) -> None:
    with trainee_of(model, text_encoder_lora=True) as trainee:
        matrices = [encoder.rows.base.weight for encoder in trainee.encoders]
        frozen = [parameter for part in (trainee.unet, trainee.pipe.vae, *(e.model for e in trainee.encoders))
                  for parameter in part.parameters() if not parameter.requires_grad]  # fmt: skip
        before = [value.clone() for value in (*matrices, *frozen)]
        fit = fit_of(trainee)
        fit.run(3)
        assert all(torch.equal(old, new) for old, new in zip(before, (*matrices, *frozen), strict=True))
        held = {id(p) for group in fit.optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in trainee.named_parameters().values()}
        assert not held & {id(matrix) for matrix in matrices}
        assert all(p.grad is None for p in frozen)


def test_tokens_are_not_decayed_and_have_their_own_rate(model: Path) -> None:
    with trainee_of(model, lr=0.25, token_lr=0.5, weight_decay=0.1) as trainee:
        groups = fit_of(trainee).optimizer.param_groups
        assert [(group["peak"], group["weight_decay"]) for group in groups] == [(0.5, 0.0), (0.25, 0.1)]
        assert len(groups[0]["params"]) == len(trainee.encoders)


def test_a_method_trains_its_own_parts_only(tiny_sd: Path) -> None:
    found = {}
    for method in ("tokens", "lora", "tokens+lora"):
        with trainee_of(tiny_sd, method=method) as trainee:
            found[method] = {name.split(".")[0] for name in trainee.named_parameters()}
    assert found == {"tokens": {"tokens"}, "lora": {"unet"}, "tokens+lora": {"tokens", "unet"}}


def test_lora_sits_where_the_recipe_says(tiny_sd: Path) -> None:
    with trainee_of(tiny_sd, method="lora", targets=["proj_in"], rank=3) as trainee:
        names = trainee.named_parameters()
        assert names and all(".proj_in.lora_" in name for name in names)
        assert all(3 in parameter.shape for parameter in names.values())
    with (
        pytest.raises(ModelError, match=r"adapt\.targets: the U-Net takes no LoRA at to_qq \(.*not found.*— use to_q"),
        trainee_of(tiny_sd, method="lora", targets=["to_qq"]),
    ):
        pass


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_what_is_trained_is_fp32_whatever_the_frozen_weights_are(model: Path, dtype: str) -> None:
    with trainee_of(model, backend={"dtype": dtype}, text_encoder_lora=True) as trainee:
        assert {p.dtype for p in trainee.named_parameters().values()} == {torch.float32}
        assert trainee.unet.conv_in.weight.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        fit = fit_of(trainee)
        fit.run(2)
        assert all(torch.isfinite(p).all() for p in trainee.named_parameters().values())
        assert {p.grad.dtype for p in trainee.named_parameters().values() if p.grad is not None} == {torch.float32}


# ------------------------------------------------------------------------------------------ first values


@pytest.fixture(scope="module")
def tokenizer(tiny_sd: Path):  # noqa: ANN201
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(tiny_sd / "tokenizer")


@pytest.fixture(scope="module")
def vocabulary(tokenizer) -> torch.Tensor:  # noqa: ANN001
    scale = torch.linspace(0.2, 3.0, 24)
    return 0.5 + scale * torch.randn(len(tokenizer), 24, generator=torch.Generator().manual_seed(0))


def rows_of(tokenizer, vocabulary: torch.Tensor, words: list[str], vectors: int, init: str = "name", seed: int = 1):  # noqa: ANN001, ANN201
    return first_rows(tokenizer, vocabulary, words, vectors, init, torch.Generator().manual_seed(seed))


def near(rows: torch.Tensor, wanted: torch.Tensor, vocabulary: torch.Tensor) -> bool:
    """Equal but for the noise of 1 % of the vocabulary's deviation."""
    return bool(((rows - wanted).abs() < 0.06 * vocabulary.std()).all())


def test_first_values_are_the_words_own_pieces(tokenizer, vocabulary: torch.Tensor) -> None:  # noqa: ANN001
    pieces = tokenizer("snow ower", add_special_tokens=False)["input_ids"]
    assert len(pieces) > 3, "a known word and one of several pieces"
    rows = rows_of(tokenizer, vocabulary, ["cat", "snow ower"], 3)
    [cat] = tokenizer("cat", add_special_tokens=False)["input_ids"]
    assert near(rows[:3], vocabulary[cat].expand(3, -1), vocabulary), "one piece, three vectors"
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(rows[:3], 2)), "copies must be able to part"
    assert near(rows[3:5], vocabulary[torch.tensor(pieces[:2])], vocabulary)
    assert near(rows[5], vocabulary[torch.tensor(pieces[2:])].mean(0), vocabulary), (
        "the last ones averaged into the last"
    )
    one = rows_of(tokenizer, vocabulary, ["snow ower"], 1)
    assert near(one[0], vocabulary[torch.tensor(pieces)].mean(0), vocabulary)


def test_first_values_from_a_given_word(tokenizer, vocabulary: torch.Tensor) -> None:  # noqa: ANN001
    [owl] = tokenizer("owl", add_special_tokens=False)["input_ids"]
    rows = rows_of(tokenizer, vocabulary, ["cat", "dog"], 2, init="owl")
    assert near(rows, vocabulary[owl].expand(4, -1), vocabulary)


def test_random_first_values_have_the_vocabularys_spread(tokenizer, vocabulary: torch.Tensor) -> None:  # noqa: ANN001
    rows = rows_of(tokenizer, vocabulary, ["x"] * 1000, 2, init="random")
    assert torch.allclose(rows.mean(0), vocabulary.mean(0), atol=0.25)
    assert torch.allclose(rows.std(0), vocabulary.std(0), rtol=0.1)
    assert torch.equal(rows, rows_of(tokenizer, vocabulary, ["x"] * 1000, 2, init="random"))
    assert not torch.equal(rows, rows_of(tokenizer, vocabulary, ["x"] * 1000, 2, init="random", seed=2))


def test_words_that_tokenise_to_nothing_are_refused_with_a_way_out(vocabulary: torch.Tensor) -> None:
    class Dropping:
        """As a WordPiece tokenizer that knows Latin letters only."""

        all_special_ids = (0,)

        def __call__(self, text: str, add_special_tokens: bool):  # noqa: ANN204
            from types import SimpleNamespace

            return SimpleNamespace(input_ids=[ord(letter) % 50 + 1 if letter.isascii() else 0 for letter in text])

    with pytest.raises(
        ModelError, match=r"1 of the first words tokenise to nothing, for example '🦋' — set adapt.init=random"
    ):
        rows_of(Dropping(), vocabulary, ["bee", "🦋"], 1)
    assert len(rows_of(Dropping(), vocabulary, ["bee", "🦋"], 2, init="random")) == 4
    with pytest.raises(ModelError, match="tokenise to nothing"):
        rows_of(Dropping(), vocabulary, ["bee", "fly"], 1, init="🦋")


def test_a_model_that_was_adapted_before_is_refused(tiny_sd: Path, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    model = copied_with_tokenizer(tiny_sd, tmp_path / "model", lambda t: t.add_tokens(["<class_1>"]))
    assert "<class_1>" in CLIPTokenizer.from_pretrained(model / "tokenizer").get_vocab()
    with pytest.raises(ModelError, match="<class_1> is a word of its vocabulary already"), trainee_of(model):
        pass


def test_a_vocabulary_larger_than_the_embedding_is_refused(tiny_sd: Path, tmp_path: Path) -> None:
    model = copied_with_tokenizer(tiny_sd, tmp_path / "model", lambda t: t.add_tokens(["zebra"]))
    with pytest.raises(ModelError, match="vocabulary and text encoder do not belong together"), trainee_of(model):
        pass


def copied_with_tokenizer(model: Path, target: Path, change) -> Path:  # noqa: ANN001
    import shutil

    from transformers import CLIPTokenizer

    shutil.copytree(model, target)
    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    change(tokenizer)
    tokenizer.save_pretrained(target / "tokenizer")
    return target


# ------------------------------------------------------------------------------------------ what is written


def test_the_files_hold_what_was_trained(model: Path, tmp_path: Path) -> None:
    with make_run(tmp_path / "run") as folder:
        learn(folder, recipe_of(model, vectors=2))
        found = weights(folder.root)
    tokens = {key: value for key, value in found.items() if key.startswith("learned_embeds")}
    assert len(tokens) == (3 if model.name == "tiny-sd" else 6)
    assert all(value.shape == (2, 32) and value.dtype == torch.float32 for value in tokens.values())
    lora = {key for key in found if key.startswith("pytorch_lora_weights")}
    assert lora and all("/unet." in key and key.endswith((".lora_A.weight", ".lora_B.weight")) for key in lora)


def test_alpha_is_folded_so_that_every_loader_draws_what_was_trained(model: Path, tmp_path: Path) -> None:
    """The trainee itself and the files through stock diffusers' loaders draw the same, with alpha four times the rank."""
    from variegate.backends.adapter import AdapterFacts, write_adapter

    prompts = ["a photo of a <class_0>", "<class_2>"]
    with trainee_of(model, vectors=2, rank=2, alpha=8.0, text_encoder_lora=True) as trainee:
        fit_of(trainee, views_of(trainee)).run(3)
        trained = trainee.draw(prompts, [1, 2])
        facts = AdapterFacts("tokens+lora", ("cat", "dog", "red_owl"), trainee.placeholders, 2)
        write_adapter(tmp_path, facts, trainee.learned_tokens(), trainee.learned_lora())
    with DiffusionBackend.open(spec_of(model, tmp_path)) as backend:
        drawn = draw_with(backend, prompts, [1, 2])
    with DiffusionBackend.open(spec_of(model)) as backend:
        plain = draw_with(backend, prompts, [1, 2])
    assert abs(trained.astype(int) - drawn).max() <= 1
    assert abs(plain.astype(int) - drawn).max() > 1
