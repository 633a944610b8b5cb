"""Embedding files of this and other trainers, and the token table that their vectors extend."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from trainer import families
from trainer.families.base import Framing
from trainer.families.embedding import PLACEHOLDER_KEY, Embedding, TokenTable

FRAMING = Framing((16, 16), (0, 0), (16, 16))


@pytest.fixture
def vectors():
    return torch.randn(2, 24, generator=torch.Generator().manual_seed(0))


def saved(path, tensors, **metadata):
    save_file(tensors, path, metadata=metadata)
    return path


def encode(model, caption):
    return model.encode_captions([caption]).hidden[0]


def test_our_own_file_stores_its_placeholder(tmp_path, vectors):
    path = saved(tmp_path / "x.safetensors", {"clip_l": vectors}, **{PLACEHOLDER_KEY: "<dog>"})
    embedding = Embedding.read(path)
    assert embedding.placeholder == "<dog>"
    assert list(embedding.vectors) == ["clip_l"]
    assert torch.equal(embedding.vectors["clip_l"], vectors)


def test_other_trainers_files_use_the_file_name_as_placeholder(tmp_path, vectors):
    one = saved(tmp_path / "my-style.safetensors", {"emb_params": vectors.half()})
    torch.save({"string_to_param": {"*": vectors}, "name": "old"}, tmp_path / "my-dog.pt")
    diffusers = saved(tmp_path / "my-cat.safetensors", {"<cat>": vectors[0]})
    for path in (one, tmp_path / "my-dog.pt", diffusers):
        embedding = Embedding.read(path)
        assert embedding.placeholder == path.stem
        found = embedding.vectors["clip_l"]
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, vectors[: len(found)], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("contents", [{"<cat>"}, {"emb_params"}, {"string_to_param"}])
def test_bin_files_are_read(tmp_path, vectors, contents, is_zip):
    path = tmp_path / "my-cat.bin"
    saved_as = {name: {"*": vectors} if "param" in name and "_to" in name else vectors
                for name in contents}  # fmt: skip
    torch.save(saved_as, path, _use_new_zipfile_serialization=is_zip)
    embedding = Embedding.read(path)
    assert embedding.placeholder == "my-cat"
    assert torch.equal(embedding.vectors["clip_l"], vectors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_parameter_dict_is_read_without_running_torchs_class(
    tmp_path, vectors, monkeypatch, dtype
):
    parameters = nn.ParameterDict({"*": nn.Parameter(vectors.to(dtype))})
    contents = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": parameters}
    torch.save(contents, tmp_path / "my-dog.pt")
    monkeypatch.setattr(nn.ParameterDict, "__setstate__", None)
    embedding = Embedding.read(tmp_path / "my-dog.pt")
    assert torch.equal(embedding.vectors["clip_l"], vectors.to(dtype).float())


@pytest.mark.parametrize("parameters", [None, 3, {"*": 3}, {3: torch.zeros(1, 24)}])
def test_a_parameter_dict_without_vectors_is_refused(tmp_path, parameters):
    inner = nn.ParameterDict()
    inner.__dict__["_parameters"] = parameters
    torch.save({"string_to_param": inner}, tmp_path / "my-dog.pt")
    with pytest.raises(ValueError, match="'my-dog.pt' holds no tensors. Choose an embedding of "):
        Embedding.read(tmp_path / "my-dog.pt")


@pytest.mark.parametrize(
    ("module", "is_zip"), [(nn.Linear(2, 2), True), (nn.ParameterDict(), False)]
)
def test_a_file_that_would_run_code_is_refused_as_an_embedding(tmp_path, module, is_zip):
    """torch's format before 1.6 stores the source of each module's class."""
    contents = {"string_to_param": module}
    torch.save(contents, tmp_path / "my-dog.pt", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError) as caught:
        Embedding.read(tmp_path / "my-dog.pt")
    assert str(caught.value) == (
        "'my-dog.pt' holds more than numbers: opening it would run code from the file, which could "
        "do anything on this computer. Choose the .safetensors version of this embedding."
    )
    path = saved(tmp_path / "my-dog.safetensors", {"emb_params": torch.zeros(1, 24)})
    assert Embedding.read(path).placeholder == "my-dog"


def test_messages_about_files_ask_for_an_embedding(tmp_path):
    (tmp_path / "page.pt").write_bytes(b"<!DOCTYPE html>")
    (tmp_path / "x.png").write_bytes(b"")
    for name, error, message in (
        ("gone.pt", FileNotFoundError, "Name an existing .safetensors or .pt embedding."),
        ("", ValueError, "is a folder, not an embedding. Choose a single .safetensors or .pt file"),
        ("page.pt", ValueError, "is a web page, not an embedding: the download failed."),
        ("x.png", ValueError, "embeddings end in .safetensors, .pt, .bin, .ckpt. Choose one"),
    ):
        with pytest.raises(error, match=message):
            Embedding.read(tmp_path / name)
    torch.save({"*": torch.zeros(1, 24)}, tmp_path / "my-x.pt")
    assert Embedding.read(tmp_path / "my-x.pt").placeholder == "my-x"


@pytest.mark.parametrize(
    ("name", "fault", "better"),
    [
        ("my dog.pt", "'my dog' contains spaces", "my-dog"),
        ("dog.bin", "'dog' is a word of CLIP's vocabulary", "my-dog"),
        ("Dog.safetensors", "'Dog' is a word of CLIP's vocabulary", "my-Dog"),
        (" dog.pt", "' dog' contains spaces", "my-dog"),
        (" .pt", "' ' contains spaces", "my-embedding"),
        ("!.pt", "'!' is a word of CLIP's vocabulary", "my-!"),
    ],
)
def test_a_file_name_that_cannot_be_a_placeholder_must_be_renamed(
    tmp_path, vectors, name, fault, better
):
    path = tmp_path / name
    if path.suffix == ".safetensors":
        saved(path, {"emb_params": vectors})
    else:
        torch.save({"*": vectors}, path)
    new = better + path.suffix
    with pytest.raises(ValueError) as caught:
        Embedding.read(path)
    assert str(caught.value) == (
        f"The placeholder of '{name}' in prompts is its file name, but {fault}. Rename the file to "
        f"'{new}', and write '{better}' in prompts."
    )
    assert Embedding.read(path.rename(tmp_path / new)).placeholder == better


def test_vectors_for_two_text_encoders_are_read_as_one_embedding(tmp_path, vectors):
    pair = {"clip_l": vectors, "clip_g": torch.ones(2, 32)}
    found = Embedding.read(saved(tmp_path / "my-xl.safetensors", pair)).vectors
    assert {name: tuple(v.shape) for name, v in found.items()} == {
        "clip_l": (2, 24), "clip_g": (2, 32),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "tensors", "message"),
    [
        (
            "my-x", {"a": torch.zeros(1, 24), "b": torch.zeros(1, 24)},
            "'my-x.safetensors' holds 2 tensors, not one embedding: 'a' with the shape [1, 24], "
            "'b' with the shape [1, 24]. Choose a file that holds one embedding, such as one that "
            "Textual Inversion Train wrote.",
        ),
        (
            "my-x", {f"lora_unet_{number}.weight": torch.zeros(1, 24) for number in range(5)},
            "'my-x.safetensors' is a LoRA, not an embedding of textual inversion. Choose a file "
            "that holds one embedding, such as one that Textual Inversion Train wrote.",
        ),
        (
            "my-x", {"clip_l": torch.zeros(1, 2, 24)},
            "'clip_l' of 'my-x.safetensors' has the shape [1, 2, 24], or holds NaN or infinite "
            "numbers. An embedding must be one finite vector per token. Choose another file.",
        ),
        (
            "my-x", {"clip_l": torch.tensor([[float("nan")]])},
            "'clip_l' of 'my-x.safetensors' has the shape [1, 1], or holds NaN or infinite "
            "numbers. An embedding must be one finite vector per token. Choose another file.",
        ),
    ],
)  # fmt: skip
def test_refuses_what_is_not_an_embedding(tmp_path, name, tensors, message):
    path = saved(tmp_path / f"{name}.safetensors", tensors)
    with pytest.raises(ValueError) as caught:
        Embedding.read(path)
    assert str(caught.value) == message


def test_a_placeholder_is_replaced_by_its_vectors_wherever_it_occurs(tiny_model, vectors):
    """Compared with transformers' own model on a table that contains the new rows."""
    words = tiny_model.token_tables()["clip_l"].weight
    tiny_model.add_embedding(Embedding("<tok>", {"clip_l": vectors}))
    table = nn.Embedding.from_pretrained(torch.cat([words.detach(), vectors]))

    found = encode(tiny_model, "a photo of <tok>, by <TOK>")

    first, second = len(words), len(words) + 1
    expected_ids = tiny_model.tokenizer.encode(["a photo of"])[0].tolist()[:4]
    comma, by = (tiny_model.tokenizer.encode([word])[0, 1].item() for word in (",", "by"))
    expected_ids += [first, second, comma, by, first, second]
    end = tiny_model.tokenizer.pad_id
    expected_ids += [end] * (77 - len(expected_ids))
    encoder = tiny_model.text_encoders[0]
    encoder.set_input_embeddings(table)
    expected = encoder(torch.tensor([expected_ids])).last_hidden_state[0]
    torch.testing.assert_close(found, expected)


def test_other_captions_and_the_file_tensors_do_not_change(tiny_model, vectors):
    before = encode(tiny_model, "a photo of a dog")
    names = {part: set(tiny_model.file_tensors(part)) for part in tiny_model.parts()}
    tiny_model.add_embedding(Embedding("<tok>", {"clip_l": vectors}))
    assert torch.equal(encode(tiny_model, "a photo of a dog"), before)
    assert {part: set(tiny_model.file_tensors(part)) for part in tiny_model.parts()} == names


def test_only_the_new_vectors_get_gradients(vectors):
    table = TokenTable(nn.Embedding(10, 24).requires_grad_(False))
    ids, parameter = table.add(vectors)
    assert ids == [10, 11]
    parameter.requires_grad_(True)
    table(torch.tensor([[3, 11, 3]])).sum().backward()
    assert torch.equal(parameter.grad, torch.tensor([[0.0], [1.0]]).expand(2, 24))
    assert table.weight.grad is None


def test_two_placeholders_can_be_added_but_none_twice(tiny_model, vectors):
    tiny_model.add_embedding(Embedding("<one>", {"clip_l": vectors}))
    tiny_model.add_embedding(Embedding("<two>", {"clip_l": vectors[:1] * 2}))
    ids = tiny_model.tokenizer.encode(["<two> <one>"])[0].tolist()
    assert ids[1:4] == [49410, 49408, 49409]
    with pytest.raises(ValueError) as caught:
        tiny_model.add_embedding(Embedding("<ONE>", {"clip_l": vectors}))
    assert str(caught.value) == (
        "The placeholder '<ONE>' already belongs to another embedding. Choose another placeholder, "
        "or remove the other embedding."
    )


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize(
    "layout",
    [
        lambda vectors: vectors,
        lambda vectors: [vectors],
        lambda vectors: [{"<dog>": vectors}],
        lambda vectors: ({"string_to_param": {"*": vectors}, "name": "old"}, "by hand"),
        lambda vectors: [{}, {"state_dict": {"emb_params": vectors}}],
    ],
)
def test_lists_with_one_embedding_and_single_tensors_are_read(tmp_path, vectors, layout, is_zip):
    torch.save(layout(vectors), tmp_path / "my-dog.pt", _use_new_zipfile_serialization=is_zip)
    embedding = Embedding.read(tmp_path / "my-dog.pt")
    assert embedding.placeholder == "my-dog"
    assert torch.equal(embedding.vectors["clip_l"], vectors)


def test_a_list_for_two_text_encoders_is_read(tmp_path, vectors):
    torch.save([{"clip_l": vectors}, {"clip_g": torch.ones(2, 32)}], tmp_path / "my-xl.pt")
    assert list(Embedding.read(tmp_path / "my-xl.pt").vectors) == ["clip_l", "clip_g"]


def test_several_embeddings_in_a_list_are_named(tmp_path, vectors):
    path = tmp_path / "my-dogs.pt"
    torch.save([{"<dog>": vectors}] * 2 + [{"string_to_param": {"*": vectors[0]}}] * 4, path)
    with pytest.raises(ValueError) as caught:
        Embedding.read(path)
    assert str(caught.value) == (
        "'my-dogs.pt' holds 6 tensors, not one embedding: '<dog>' with the shape [2, 24], "
        "'<dog> (2)' with the shape [2, 24], '*' with the shape [24], '* (4)' with the shape [24], "
        "and 2 more. Choose a file that holds one embedding, such as one that Textual Inversion "
        "Train wrote."
    )
    torch.save([{"<dog>": vectors}], path)
    assert torch.equal(Embedding.read(path).vectors["clip_l"], vectors)


@pytest.mark.parametrize("contents", [[], [[]], ["a", 3], [[[{"x": 1}]]], 3])
def test_a_list_without_vectors_is_refused(tmp_path, contents):
    itself: list = []
    itself.extend([itself] * 1000)
    for name, value in (("my-a.pt", contents), ("my-b.pt", itself)):
        torch.save(value, tmp_path / name)
        with pytest.raises(ValueError, match=f"'{name}' holds no tensors. Choose an embedding of "):
            Embedding.read(tmp_path / name)


def test_refuses_vectors_of_another_family(tiny_checkpoint, tmp_path, vectors):
    wide = saved(tmp_path / "my-wide.safetensors", {"clip_l": torch.zeros(1, 32)})
    other = saved(tmp_path / "my-sd2.safetensors", {"clip_h": torch.zeros(1, 24)})
    pair = {"clip_l": torch.zeros(1, 24), "clip_g": torch.zeros(1, 32)}
    both = saved(tmp_path / "my-xl.safetensors", pair)
    for path, message in (
        (
            wide,
            "The vectors of 'my-wide' have 32 dimensions, but the text encoder of "
            "'tiny.safetensors' needs 24. Choose an embedding that was trained for this kind of "
            "model.",
        ),
        (
            other,
            "The embedding of 'my-sd2' is for Stable Diffusion 2: it has vectors for clip_h, but "
            "Stable Diffusion 1 needs vectors for clip_l alone. Choose an embedding for Stable "
            "Diffusion 1.",
        ),
        (
            both,
            "The embedding of 'my-xl' is for Stable Diffusion XL: it has vectors for clip_l and "
            "clip_g, but Stable Diffusion 1 needs vectors for clip_l alone. Choose an embedding "
            "for Stable Diffusion 1.",
        ),
    ):
        with pytest.raises(ValueError) as caught:
            families.load(tiny_checkpoint, torch.device("cpu"), path)
        assert str(caught.value) == message
    mine = saved(tmp_path / "my-sd1.safetensors", {"clip_l": torch.zeros(1, 24)})
    model = families.load(tiny_checkpoint, torch.device("cpu"), mine)
    assert list(model.learned_vectors) == ["my-sd1"]
